"""Plan how many rows fit into the memory that a device has left after the weights.

The memory of a row, if all rows have the length of the longest solution:

- a dense slot with room for prompt and solution, counted twice, because slots are
  copied when their size changes or when only some of them are chosen;
- the blocks of two rows per slot, in the caches of the policy and of the reward; on
  average a row is half as long as the longest;
- the logits of a token in float32, with the temporary arrays of sampling.

If memory is left, more rows of unfinished problems are in progress, up to `IN_FLIGHT`
per slot.

A row that shares its past with others takes less. If a plan is still too large, the run
takes longer, but no result is lost (:mod:`tsi.engine.endurance`).
"""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from tsi.engine.sizing.memory import (
    CacheSizes,
    bytes_of_row,
    cache_sizes,
    free_bytes,
    largest_model_bytes,
    unloaded_bytes,
)
from tsi.engine.sizing.sizes import BLOCK, BURST, IN_FLIGHT, room_of
from tsi.models.exchange import least_bytes
from tsi.models.partition import MODEL, spans_processes
from tsi.reasoning.target import ReasoningTarget

USABLE = 0.85
"""The share of free memory that a plan uses; the rest is left for reading."""
STORED = 0.2
"""The share of the planned memory for prefixes that explorers store."""
COPIES = 2
"""Dense rows per slot while slots are being copied."""
DRAWING = 3 * 4
"""Bytes per logit, including the temporary arrays of drawing a token."""
MAX_ROWS, MAX_STORED = 4096, 65_536
"""Limits for reasons other than memory."""
MAX_ROWS_OF_A_CPU, MAX_STORED_OF_A_CPU = 128, 16_384
"""On two cores, 128 rows of the tiny models take a seventh less time than 2,048 rows,
because their keys and values stay in the processor's caches."""


class Need(NamedTuple):
    """The quantities that determine how much memory a row takes.

    Attributes:
        caches: bytes per position in each cache.
        prompt: positions of the longest prompt.
        block: positions of a block.
    """

    caches: CacheSizes
    prompt: int
    block: int


class Limits(NamedTuple):
    """The maximum numbers of rows, of stored prefixes, and of rows in progress."""

    rows: int
    stored: int
    in_flight: int


def device_limits(
    target: ReasoningTarget,
    policy: Any,
    reward_model: Any,
    prompt: int,
    mesh: Mesh | None,
    cache_dtype: str | None = None,
    max_rows: int | None = None,
    *,
    offload_weights: bool = False,
) -> Limits:
    """Limits for these models and the current free memory of the devices.

    Args:
        target: for its limits and its reward.
        policy: the language model, or its shapes; memory for weights that are not on
            the devices yet is subtracted.
        reward_model: its weights, or their shapes, or None.
        prompt: tokens of the longest prompt.
        mesh: the devices, as :class:`tsi.engine.engine.Engine` has them.
        cache_dtype: type of keys and values; None for the models' own.
        max_rows: number of rows, if it is given and not planned.
        offload_weights: whether only one of the models is on the devices at a time;
            except on CPUs, memory for the larger one is then subtracted.
    """
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    parts = 1 if mesh is None else mesh.shape.get(MODEL, 1)
    free = min(free_bytes(device) for device in devices)
    on_cpu = devices[0].platform == "cpu"
    if on_cpu:
        # CPU devices share the host's memory.
        free //= len(devices)
    bytes_of = unloaded_bytes
    if offload_weights and not on_cpu:
        bytes_of = largest_model_bytes
    free -= bytes_of((policy, reward_model), mesh)
    if spans_processes(mesh):
        # Processes with parts of one model must plan the same batches.
        free = least_bytes(mesh, free)
    caches = cache_sizes(target, policy, reward_model, parts, cache_dtype)
    need = Need(caches, prompt, BLOCK)
    slot = bytes_of_slot(need, target, policy.config.vocab_size, BURST)
    limits = limits_of(slot, bytes_of_prefix(need, target), free, on_cpu=on_cpu)
    rows = limits.rows if max_rows is None else max_rows
    left = int((1 - STORED) * USABLE * free) - rows * slot
    more = max(0, left // bytes_of_waiting(need, target))
    return limits._replace(in_flight=min(rows * IN_FLIGHT, 2 * rows + more))


def bytes_of_slot(
    need: Need, target: ReasoningTarget, vocab_size: int, burst: int
) -> int:
    """Bytes of one slot and its two rows; see the module docstring.

    Args:
        need: the quantities that determine it.
        target: the target, for its limits.
        vocab_size: of the policy.
        burst: positions that a slot has beyond the longest row.
    """
    solution = target.max_tokens
    dense = room_of(need.prompt + solution + burst) * need.caches.policy
    blocks = (solution + need.block) * sum(need.caches)
    numbers = bytes_of_row(target, need.caches.existing_sizes, need.block).numbers
    return COPIES * dense + blocks + DRAWING * vocab_size + 2 * numbers


def bytes_of_waiting(need: Need, target: ReasoningTarget) -> int:
    """Bytes of a row that waits for a slot: blocks of half the longest length."""
    blocks = (target.max_tokens + need.block) // 2 * sum(need.caches)
    return blocks + bytes_of_row(target, need.caches.existing_sizes, need.block).numbers


def bytes_of_prefix(need: Need, target: ReasoningTarget) -> int:
    """Bytes of a stored prefix: a private step of half the longest length."""
    step = target.max_step_tokens
    row = bytes_of_row(target, need.caches.existing_sizes, need.block)
    own_bytes = (step // 2 + need.block) * sum(need.caches)
    return own_bytes + row.numbers + row.tables


def limits_of(slot: int, prefix: int, free: int, *, on_cpu: bool) -> Limits:
    """The numbers of rows and stored prefixes that fit, at least one of each.

    Two rows per slot are in progress.

    Args:
        slot: bytes, see `bytes_of_slot`.
        prefix: bytes, see `bytes_of_prefix`.
        free: bytes of one device that are free after loading the weights.
        on_cpu: whether it is a CPU, where more rows are not faster.
    """
    usable = USABLE * free
    max_rows, max_stored = MAX_ROWS, MAX_STORED
    if on_cpu:
        max_rows, max_stored = MAX_ROWS_OF_A_CPU, MAX_STORED_OF_A_CPU
    rows = max(1, min(max_rows, int((1 - STORED) * usable) // slot))
    # Numbers that can be halved a few times, since slots are halved.
    unit = 1
    while unit < 16 and 2 * unit <= rows:
        unit *= 2
    rows = rows // unit * unit
    num_stored = max(rows, min(max_stored, int(STORED * usable) // prefix))
    return Limits(rows, num_stored, 2 * rows)
