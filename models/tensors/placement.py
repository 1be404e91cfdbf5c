"""Reads tensors on disk into one parameter on its devices, without a second copy.

Each tensor is read once, block by block, into the shards of the parameter that this
process holds. On a CPU these shards become the device's memory; other devices copy
them, and they are freed. In addition to the weights at most one parameter and one block
of the file are in memory.
"""

import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Sharding

from tsi.errors import CheckpointError
from tsi.models.tensors.safetensors import RowReader, StoredTensor

BLOCK = 1 << 20
"""Entries that are converted and checked at a time; they fit into a CPU's cache."""
ALIGNMENT = 64
"""Bytes; a CPU device takes over aligned memory without a copy."""

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
        tensors: names and tensors, one per layer if stacked.
        dtype: in memory.
        sharding: where it goes.
        stacked: whether the parameter's first axis counts layers.
        transposed: whether the file holds the transpose of each matrix.

    Raises:
        CheckpointError: a value is not finite in ``dtype``.
    """
    indices = sharding.addressable_devices_indices_map(shape)
    shards = {
        bounds: _allocate([stop - start for start, stop in bounds], dtype)
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
            alternative = "" if dtype == np.float32 else ", or load it in float32"
            raise CheckpointError(
                f"{tensor.file}: tensor {name} has values that are not finite in "
                f"{dtype}. Download the file again{alternative}."
            )
    return jax.make_array_from_callback(
        shape, sharding, lambda index: shards[_bounds(index, shape)]
    )


def are_equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two stored tensors of the same shape have the same values."""
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
    """Blocks of a tensor's rows, each with the index of its first row."""
    rows = max(1, BLOCK // max(1, math.prod(tensor.shape[1:])))
    by_rows = isinstance(tensor.read, RowReader) and len(tensor.shape) > 1
    values = None if by_rows else tensor.read()
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])
        if values is None:
            yield start, tensor.read.rows(start, stop)  # type: ignore[attr-defined]
        else:
            yield start, values[start:stop]
        tensor.release()


def _bounds(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> Bounds:
    assert index is not None
    return tuple(
        part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
    )


def _allocate(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
