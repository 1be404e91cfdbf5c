"""From tensors on disk to one parameter on its devices, without a second copy.

Each tensor is read once, block by block, into the shards of the parameter that this
process holds. On a CPU the shards then are the device's memory; elsewhere they are
given up once copied. Beside the weights only one parameter, and of the file only a
block, is in memory.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Sharding

from tsi.errors import CheckpointError
from tsi.models.tensors.safetensors import ReadsRows, StoredTensor

BLOCK = 1 << 20
"""Entries that are converted and checked at a time: few enough for a cache."""
ALIGNMENT = 64
"""Of memory that a CPU device takes over as it is."""

Bounds = tuple[tuple[int, int], ...]


def place(
    shape: tuple[int, ...],
    tensors: Sequence[tuple[str, StoredTensor]],
    dtype: np.dtype,
    sharding: Sharding,
    *,
    stacked: bool,
    transposed: bool,
) -> jax.Array:
    """Read one parameter straight into its shards.

    Args:
        shape: of the whole parameter.
        tensors: names and tensors, one a layer if stacked.
        dtype: in memory.
        sharding: where it goes.
        stacked: whether the parameter's first axis counts layers.
        transposed: whether the file has each matrix the other way round.

    Raises:
        CheckpointError: a value is not finite in ``dtype``.
    """
    indices = sharding.addressable_devices_indices_map(shape)
    shards = {
        bounds: _aligned([stop - start for start, stop in bounds], dtype)
        for bounds in {_bounds(index, shape) for index in indices.values()}
    }
    for layer, (name, tensor) in enumerate(tensors):
        targets = []
        for bounds, shard in shards.items():
            region, target = bounds, shard
            if stacked:
                (first, last), *rest = bounds
                if not first <= layer < last:
                    continue
                region, target = tuple(rest), shard[layer - first]
            targets.append((region[::-1], target.T) if transposed else (region, target))
        if not _fill(targets, tensor):
            or_wider = "" if dtype == np.float32 else ", or load it in float32"
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has values that are not finite in "
                f"{dtype}. Download the file again{or_wider}."
            )
    return jax.make_array_from_callback(
        shape, sharding, lambda index: shards[_bounds(index, shape)]
    )


def equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two stored tensors of one shape have the same values."""
    pairs = zip(_blocks(a), _blocks(b), strict=True)
    return all(np.array_equal(left, right) for (_, left), (_, right) in pairs)


def _fill(targets: list[tuple[Bounds, np.ndarray]], tensor: StoredTensor) -> bool:
    """Copy each region of a tensor to its target; False if a value is not finite."""
    for start, block in _blocks(tensor):
        stop = start + len(block)
        for ((first, last), *rest), target in targets:
            begin, end = max(start, first), min(stop, last)
            if begin >= end:
                continue
            columns = tuple(slice(*ends) for ends in rest)
            part = target[begin - first : end - first]
            with np.errstate(over="ignore", invalid="ignore"):
                part[...] = block[(slice(begin - start, end - start), *columns)]
            if not np.isfinite(part).all():
                return False
    return True


def _blocks(tensor: StoredTensor) -> Iterator[tuple[int, np.ndarray]]:
    """A tensor's rows, some at a time, with the number of the first of them."""
    rows = max(1, BLOCK // max(1, math.prod(tensor.shape[1:])))
    in_parts = isinstance(tensor.read, ReadsRows) and len(tensor.shape) > 1
    whole = None if in_parts else tensor.read()
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])
        if whole is None:
            yield start, tensor.read.rows(start, stop)  # type: ignore[attr-defined]
        else:
            yield start, whole[start:stop]
        tensor.release()


def _bounds(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Bounds:
    assert index is not None
    return tuple(
        part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
    )


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
