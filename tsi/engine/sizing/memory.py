"""Check before a run that it can fit into memory.

The check uses a lower bound: the memory that rows cannot share. This is their tokens
and numbers, the table of blocks, and for each working row one block per cache, since
the last block of a row is private. A run that passes the check may still run out of
memory later (see :mod:`tsi.engine.endurance`); a run that does not pass cannot finish.
"""

import math
import resource
import sys
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil
from flax import nnx
from jax.sharding import Mesh

from tsi.errors import ConfigurationError
from tsi.explorer import Plan
from tsi.models.decoder_config import DecoderConfig
from tsi.models.partition import MODEL, sharding_of
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.target import ReasoningTarget


class RowBytes(NamedTuple):
    """The minimum memory of one row, in bytes.

    Attributes:
        numbers: tokens, step ends and rewards by step.
        tables: its part of the table of blocks.
        blocks: one block in each cache.
    """

    numbers: int
    tables: int
    blocks: int


def bytes_of_row(target: Any, caches: list[int], block: int) -> RowBytes:
    """The minimum memory of one row.

    Args:
        target: a :class:`tsi.reasoning.target.ReasoningTarget`.
        caches: bytes of a position in each cache that grows with the row.
        block: positions of a block.
    """
    # Ends, states, log p and log-odds of each step, and about six numbers per row.
    numbers = 4 * target.max_tokens + 4 * 4 * target.max_steps + 32
    if target.reward.token_confidence is not None:
        numbers += 4 * target.max_tokens
    columns = -(-target.max_tokens // block)
    return RowBytes(numbers, 4 * columns * len(caches), block * sum(caches))


def bytes_per_position(config: DecoderConfig, itemsize: int) -> int:
    """Keys and values of one position in all layers."""
    entries = 2 * config.num_layers * config.num_kv_heads * config.head_width
    return entries * itemsize


CACHE_DTYPES = ("float32", "bfloat16", "float16")


def check_cache_dtype(name: str) -> None:
    """Refuse a type that is not supported for keys and values.

    Raises:
        ConfigurationError: see above.
    """
    if name not in CACHE_DTYPES:
        raise ConfigurationError(
            f"cache_dtype is {name!r}; keys and values are kept in "
            f"{', '.join(CACHE_DTYPES)}."
        )


class CacheSizes(NamedTuple):
    """Bytes of a position in the caches that grow with a row, on one device."""

    policy: int
    reward: int

    @property
    def existing_sizes(self) -> list[int]:
        """The sizes of the caches that exist."""
        return [size for size in self if size]


def cache_sizes(
    target: ReasoningTarget,
    policy: Any,
    reward_model: Any,
    parts: int,
    dtype: str | None = None,
) -> CacheSizes:
    """Bytes per position in the caches of a policy and a reward.

    Args:
        target: the target, for its reward.
        policy: the language model, or its shapes.
        reward_model: its weights, or their shapes, or None.
        parts: number of devices over which heads are divided.
        dtype: type of keys and values; None for the models' own.
    """
    unread: Any = None

    def size(model: Any, config: DecoderConfig | None) -> int:
        # The state of a custom reward is not known.
        if config is None or not hasattr(model, "trunk"):
            return 0
        cache_dtype = model.trunk.cache_dtype if dtype is None else np.dtype(dtype)
        # Heads that cannot be divided evenly are replicated on every device.
        share = parts if config.num_kv_heads % parts == 0 else 1
        return bytes_per_position(config, cache_dtype.itemsize) // share

    reader = None
    if target.reward.reads_prompts:
        params = ReasoningParams(policy, reward_model, unread, unread)
        reader = target.reward.reader(params)
    return CacheSizes(size(policy, policy.config), size(reward_model, reader))


def unloaded_bytes(models: Any, mesh: Mesh | None = None) -> int:
    """Bytes per device of weights that are not loaded yet.

    Args:
        models: a model, or several.
        mesh: the devices over which they will be divided; None for one device.
    """
    return sum(
        _model_bytes(model, mesh, with_loaded=False) for model in _modules(models)
    )


def largest_model_bytes(models: Any, mesh: Mesh | None = None) -> int:
    """Bytes per device of the largest of some models, loaded or not.

    Args:
        models: as in `unloaded_bytes`.
        mesh: as there.
    """
    return max(
        (_model_bytes(model, mesh, with_loaded=True) for model in _modules(models)),
        default=0,
    )


def _modules(models: Any) -> list[nnx.Module]:
    leaves = jax.tree.leaves(models, is_leaf=lambda x: isinstance(x, nnx.Module))
    return [model for model in leaves if isinstance(model, nnx.Module)]


def _model_bytes(model: nnx.Module, mesh: Mesh | None, *, with_loaded: bool) -> int:
    """Bytes per device of a model's weights, those on disk or all."""
    config, total = getattr(model, "config", None), 0
    for keys, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf = variable.get_value()
        if not (with_loaded or isinstance(leaf, jax.ShapeDtypeStruct)):
            continue
        shape = leaf.shape
        if mesh is not None and isinstance(config, DecoderConfig):
            path = ".".join(map(str, keys))
            shape = sharding_of(path, shape, config, mesh).shard_shape(shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def free_bytes(device: jax.Device | None = None) -> int:
    """Free bytes of a device; for a CPU, free bytes of the host."""
    device = jax.local_devices()[0] if device is None else device
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return int(psutil.virtual_memory().available)


def free_beside_weights(
    models: Any, mesh: Mesh | None = None, *, offload_weights: bool = False
) -> int:
    """Free bytes of a device minus those of weights that are not on it yet.

    Args:
        models: a model, or several.
        mesh: devices, of which the one with the least free memory counts; None for one
            device.
        offload_weights: whether the weights are in the host's memory, and only those of
            one model at a time on the device.
    """
    devices = [None] if mesh is None else mesh.local_devices
    free = min(free_bytes(device) for device in devices)
    is_divided = mesh is not None and mesh.shape.get(MODEL, 1) > 1
    divided_mesh = mesh if is_divided else None
    if offload_weights and _has_own_memory(devices[0]):
        return free - largest_model_bytes(models, divided_mesh)
    return free - unloaded_bytes(models, divided_mesh)


def _has_own_memory(device: jax.Device | None) -> bool:
    device = jax.local_devices()[0] if device is None else device
    return device.platform != "cpu"


def peak_bytes(device: jax.Device | None = None) -> int:
    """Peak bytes of a device; for a CPU, peak bytes of the process."""
    device = jax.local_devices()[0] if device is None else device
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    # The unit is kilobytes, but bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_fits(row: RowBytes, plan: Plan, num_particles: int, free: int) -> None:
    """Refuse a number of particles that cannot fit.

    Args:
        row: bytes of one row.
        plan: working and stored rows of a problem.
        num_particles: N, for the message.
        free: bytes.

    Raises:
        ConfigurationError: the rows of one problem need more memory than is free.
    """
    rows = plan.rows + plan.stored
    parts = rows * row.numbers, rows * row.tables, plan.rows * row.blocks
    needed = sum(parts)
    if needed <= free:
        return
    check_weights_fit(free)
    numbers, tables, blocks = map(_size, parts)
    raise ConfigurationError(
        f"One problem with N = {num_particles:,} has {rows:,} rows, which take "
        f"{_size(needed)} or more ({numbers} of tokens and numbers, {tables} of "
        f"tables, {blocks} of keys and values), and {_size(free)} "
        f"are free: no more than about N = {int(num_particles * (free / needed)):,} "
        "fits. Lower N, or max_tokens and max_steps of the target, or divide the "
        "particles among islands (--islands)."
    )


def check_weights_fit(free: int) -> None:
    """Refuse models whose weights do not fit into memory.

    Args:
        free: free bytes after the weights are loaded.

    Raises:
        ConfigurationError: no memory is free.
    """
    if free <= 0:
        raise ConfigurationError(
            f"The models' weights take {_size(-free)} more than is free. Use smaller "
            "models, weights in fewer bits, more devices along the axis model, or "
            "offload weights (--offload-weights) if two models do not fit together."
        )


def check_prompts_fit(needed: int, width: int, free: int) -> None:
    """Refuse prompts that cannot be read within the free memory.

    Args:
        needed: bytes to read one prompt, in addition to the weights.
        width: positions of the longest prompt.
        free: bytes.

    Raises:
        ConfigurationError: this is more than is free.
    """
    if needed > free:
        check_weights_fit(free)
        raise ConfigurationError(
            f"Reading a prompt of {width:,} tokens takes {_size(needed)} in "
            f"addition to the weights, and {_size(free)} are free. Shorten the "
            "longest prompt, or use a smaller model or dtype."
        )


def _size(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 5e7 else f"{number / 1e6:,.2f} MB"
