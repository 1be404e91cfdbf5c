"""The per-particle part of the key-value cache: written per step, forked by gather.

All rows write a step's keys and values into the same slots, so that a write is one
contiguous update. Rows with a shorter step have masked gaps. When the slots run out,
the gaps are removed, and every row again takes only its own length. This does not
change results: keys are stored with their rotary positions, the positions of slots are
also stored (for attention to a window), and attention is a sum over unmasked slots in
any order.

Axes: L layers, R rows, K key-value heads, h head width, S slots, C tokens of a step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from tsi.models.attention import Segment
from tsi.models.decoder import KeyValues
from tsi.models.decoder_config import DecoderConfig


class Suffix(NamedTuple):
    """Keys and values of the tokens that each particle has generated.

    Attributes:
        segment: the slots, ``B`` = R.
        used: number of slots written so far, the same for all rows.
    """

    segment: Segment
    used: Int[Array, ""]


def empty_suffix(
    config: DecoderConfig, rows: int, capacity: int, dtype: DTypeLike = jnp.float32
) -> Suffix:
    """A suffix without tokens; see :func:`slots_needed` for the capacity."""
    shape = (config.num_layers, rows, config.num_kv_heads)
    keys = jnp.zeros((*shape, config.head_width, capacity), dtype)
    values = jnp.zeros((*shape, capacity, config.head_width), dtype)
    mask = jnp.zeros((rows, capacity), bool)
    segment = Segment(keys, values, jnp.zeros((rows, capacity), jnp.int32), mask)
    return Suffix(segment, jnp.zeros((), jnp.int32))


def slots_needed(max_tokens: int, max_steps: int, step_tokens: int) -> int:
    """A number of slots that is enough for a run.

    It is the smaller of two numbers: room for the full width of every step, or room for
    the longest row and one more step, where gaps are removed when the slots run out.
    """
    return min(max_steps * step_tokens, max_tokens + step_tokens)


def append(
    suffix: Suffix, new: KeyValues, counts: Int[Array, " R"], max_steps: int
) -> Suffix:
    """Store the first ``counts`` positions of each row's new keys and values.

    Args:
        suffix: the tokens so far.
        new: one step's keys ``[L, R, K, h, C]``, values ``[L, R, K, C, h]`` and
            positions ``[R, C]``.
        counts: number of tokens of each row's step; the rest is padding.
        max_steps: the maximum number of steps of a run; static.
    """
    width = new.keys.shape[-1]
    capacity = suffix.segment.mask.shape[-1]
    # A conditional copies the cache, so it is used only if the slots can run out.
    if max_steps * width > capacity:
        full = suffix.used + width > capacity
        suffix = jax.lax.cond(full, squeeze, lambda s: s, suffix)
    update = jax.lax.dynamic_update_slice_in_dim
    (keys, values, positions, mask, *_), num_used = suffix
    valid = jnp.arange(width) < counts[:, None]
    segment = Segment(
        update(keys, new.keys, num_used, axis=-1),
        update(values, new.values, num_used, axis=-2),
        update(positions, new.positions.astype(positions.dtype), num_used, axis=-1),
        update(mask, valid, num_used, axis=-1),
    )
    return Suffix(segment, num_used + jnp.max(counts).astype(num_used.dtype))


def squeeze(suffix: Suffix) -> Suffix:
    """Move every row's unmasked slots to the front, in order."""
    keys, values, positions, mask = suffix.segment[:4]
    order = jnp.argsort(~mask, axis=-1, stable=True)
    lengths = jnp.sum(mask, axis=-1)
    segment = Segment(
        jnp.take_along_axis(keys, order[None, :, None, None, :], axis=-1),
        jnp.take_along_axis(values, order[None, :, None, :, None], axis=-2),
        jnp.take_along_axis(positions, order, axis=-1),
        jnp.arange(mask.shape[-1]) < lengths[:, None],
    )
    return Suffix(segment, jnp.max(lengths).astype(jnp.int32))


def fork(suffix: Suffix, ancestors: Int[Array, " R"]) -> Suffix:
    """Give each row its ancestor's slots."""
    return Suffix(_rows(suffix.segment, ancestors), suffix.used)


def take(suffix: Suffix, rows: Int[Array, " W"]) -> Suffix:
    """Take W rows out of a store, each reduced to its own length."""
    return squeeze(Suffix(_rows(suffix.segment, rows), suffix.used))


def _rows(segment: Segment, rows: Int[Array, " W"]) -> Segment:
    keys, values, positions, mask = segment[:4]
    return Segment(keys[:, rows], values[:, rows], positions[rows], mask[rows])


def keep(stored: Suffix, slots: Int[Array, " W"], rows: Suffix) -> Suffix:
    """Overwrite the stored rows at ``slots``; slots out of range are dropped."""
    segment = Segment(
        stored.segment.keys.at[:, slots].set(rows.segment.keys, mode="drop"),
        stored.segment.values.at[:, slots].set(rows.segment.values, mode="drop"),
        stored.segment.positions.at[slots].set(rows.segment.positions, mode="drop"),
        stored.segment.mask.at[slots].set(rows.segment.mask, mode="drop"),
    )
    return Suffix(segment, jnp.maximum(stored.used, rows.used))


def cut(suffix: Suffix, lengths: Int[Array, " R"]) -> Suffix:
    """Forget all but the first ``lengths`` positions of each row."""
    mask = suffix.segment.mask
    first = jnp.cumsum(mask, axis=-1) <= lengths[:, None]
    return Suffix(suffix.segment._replace(mask=mask & first), suffix.used)
