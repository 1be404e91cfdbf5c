"""From tensors on disk to one parameter on its devices, without a second copy.

Each tensor is read once, block by block, into the shards of the parameter that this
process holds. On a CPU the shards then are the device's memory; elsewhere they are
given up once copied. Beside the weights only one parameter, and of the file only a
block, is in memory.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding

from tsi.errors import CheckpointError
from tsi.models.safetensors import StoredTensor

BLOCK = 1 << 20
"""Entries that are converted and checked at a time: few enough for a cache."""
ALIGNMENT = 64
"""Of memory that a CPU device takes over as it is."""

Bounds = tuple[tuple[int, int], ...]


def place(
    path: Path,
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
        path: of the checkpoint, for messages.
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
        stored = tensor.read()
        for bounds, shard in shards.items():
            target, region = shard, bounds
            if stacked:
                (first, last), *region = bounds  # type: ignore[assignment]
                if not first <= layer < last:
                    continue
                target = shard[layer - first]
            if transposed:
                target, region = target.T, region[::-1]
            source = stored[tuple(slice(*ends) for ends in region)]
            if not _copy(source, target, tensor.release):
                raise CheckpointError(
                    f"{path}: tensor {name} has values that are not finite in {dtype}. "
                    "Download the file again, or load it in float32."
                )
    return jax.make_array_from_callback(
        shape, sharding, lambda index: shards[_bounds(index, shape)]
    )


def equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two stored tensors of one shape have the same values."""
    first, second = a.read(), b.read()
    for rows in _blocks(first):
        if not np.array_equal(first[rows], second[rows]):
            return False
        a.release()
        b.release()
    return True


def _copy(source: np.ndarray, target: np.ndarray, release: Callable[[], None]) -> bool:
    """Fill the target; False if a value is not finite in its type."""
    for rows in _blocks(source):
        with np.errstate(over="ignore", invalid="ignore"):
            target[rows] = source[rows]
        if not np.isfinite(target[rows]).all():
            return False
        release()
    return True


def _blocks(array: np.ndarray) -> list[slice]:
    rows = max(1, BLOCK // max(1, math.prod(array.shape[1:])))
    return [slice(i, i + rows) for i in range(0, len(array), rows)]


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
