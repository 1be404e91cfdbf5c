"""Slots: the rows that write tokens now, whatever their problems.

A slot holds one row's cache in one piece: its prompt and what it has written, position
by position. A burst writes some tokens of every slot in one compiled loop and stops
when enough rows have ended their steps for the host to look at them. Random numbers are
those of :mod:`tsi.decoding`: they know the problem, the particle, the step and the
token, and nothing of the slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.boundary import Boundary
from tsi.decoding import Temperatures, empty_key_values, write_token
from tsi.engine.pages import Dense, layers_of, merge
from tsi.models.decoder import KeyValues, LanguageModel
from tsi.models.layers import Segment
from tsi.weights import weight_dtype


class Slots(NamedTuple):
    """R rows in work; names as in :class:`tsi.decoding.Decoding` where they recur.

    Attributes:
        cache: :class:`tsi.engine.pages.Dense` rows of S positions.
        filled: how many it has, which is where its newest token stands, ``[R]``.
        keys: random ones, of each row's step.
        room: tokens that each step may have, ``[R]``.
    """

    cache: Any
    filled: Int[Array, " R"]
    keys: Any
    room: Int[Array, " R"]
    token: Int[Array, " R"]
    state: Int[Array, " R"]
    active: Bool[Array, " R"]
    stopped: Bool[Array, " R"]
    counts: Int[Array, " R"]
    log_prob: Float[Array, " R"]
    log_correction: Float[Array, " R"]
    tokens: Int[Array, "R C"]


class Seen(NamedTuple):
    """What the host looks at after a burst: rows as above, tokens' time in all."""

    active: Bool[Array, " R"]
    counts: Int[Array, " R"]
    filled: Int[Array, " R"]
    turns: Int[Array, ""]


def empty_slots(cache: Dense, step_tokens: int, keys: Any) -> Slots:
    """Slots without rows."""
    rows = cache.keys[0].shape[0]
    zeros, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    floats = jnp.zeros(rows, weight_dtype())
    tokens = jnp.zeros((rows, step_tokens), jnp.int32)
    return Slots(
        cache, zeros, keys, zeros, zeros, zeros, no, no, zeros, floats, floats, tokens
    )


def segment_of(cache: Dense, filled: Int[Array, " R"]) -> Segment:
    """A row's cache as attention reads it: position p stands in place p."""
    places = jnp.arange(cache.keys[0].shape[-1], dtype=jnp.int32)
    mask = places < filled[:, None]
    return Segment(*cache, jnp.broadcast_to(places, mask.shape), mask)


def burst(
    policy: LanguageModel,
    boundary: Boundary,
    slots: Slots,
    temperatures: Temperatures,
    enough: Int[Array, ""],
    width: int,
) -> tuple[Slots, Dense, Seen]:
    """Write tokens until `enough` rows have ended their steps, at most `width` each.

    The cache is only read. What is new is put behind each row by a program of its own
    (`behind`), for a program that reads a cache and writes it copies it as well.

    Args:
        policy: the language model.
        boundary: where steps and solutions end.
        slots: R rows, with room for `width` positions more in every active one.
        temperatures: of policy and proposal.
        enough: rows.
        width: static.

    Returns:
        The slots, their cache left out; the new keys and values; what the host sees.
    """
    rows, began = slots.filled.shape[0], slots.active
    context = segment_of(slots.cache, slots.filled)
    update = jax.lax.dynamic_update_slice_in_dim

    def body(carry):
        c, offset, new = carry
        mask = jnp.broadcast_to(jnp.arange(width) < offset, (rows, width))
        hidden, read = policy.trunk(
            c.token[:, None],
            (slots.filled + offset)[:, None],
            None,
            (context, Segment(*new, mask)),
        )
        new = KeyValues(
            update(new.keys, read.keys, offset, axis=-1),
            update(new.values, read.values, offset, axis=-2),
            update(new.positions, read.positions, offset, axis=-1),
        )
        logits = policy.logits(hidden[:, 0])
        c = write_token(c, logits, slots.keys, slots.room, boundary, temperatures)
        return c, offset + 1, new

    def unfinished(carry):
        c, offset, _ = carry
        ended = jnp.sum(began & ~c.active)
        return jnp.any(c.active) & (ended < enough) & (offset < width)

    new = empty_key_values(policy.config, rows, width, slots.cache.keys[0].dtype)
    # The cache is no part of the carry: it is read in the loop and written after it.
    small = slots._replace(cache=(), keys=())
    start = (small, jnp.zeros((), jnp.int32), new)
    small, offset, new = jax.lax.while_loop(unfinished, body, start)
    filled = slots.filled + small.counts - slots.counts
    after = small._replace(keys=slots.keys, filled=filled)
    seen = Seen(after.active, after.counts, filled, offset)
    return after, layers_of(new.keys, new.values), seen


def behind(
    cache: Dense,
    new: Dense,
    filled: Int[Array, " R"],
    began: Bool[Array, " R"],
) -> Dense:
    """The cache with what a burst has written behind each row that took part.

    Args:
        cache: of R rows.
        new: of the burst.
        filled: positions that rows had before.
        began: who took part.
    """
    order = jnp.argsort(~began, stable=True)
    return merge(cache, new, filled, order, jnp.sum(began))
