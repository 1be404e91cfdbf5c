"""Slots: the rows that write tokens now, whatever their problems.

A slot holds one row's cache in one piece, position by position: all of its past, or
what follows the past that its problem's rows have in common, which stands once per
problem. A burst writes some tokens of every chosen slot in one compiled loop and stops
when enough rows have ended their steps for the host to look at them. Random numbers are
those of :mod:`tsi.decoding.decode_step`: they know the problem, the particle, the step
and the token, and nothing of the slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.boundary import Boundary
from tsi.decoding.decode_step import Temperatures, empty_key_values, write_token
from tsi.decoding.forced_end import ForcedEnd, Places, no_places
from tsi.engine.paging.pages import Dense, layers_of, merge
from tsi.models.decoder import KeyValues, LanguageModel
from tsi.models.layers import Routes, Segment
from tsi.weights import weight_dtype


class Slots(NamedTuple):
    """R rows in work; names as in :class:`tsi.decoding.decode_step.Decoding` where they
    recur.

    Attributes:
        cache: :class:`tsi.engine.paging.pages.Dense` rows of S positions.
        start: the position that is first in the cache; those before it are in the
            common past, ``[R]``.
        filled: how many positions it has in both, which is where its newest token
            stands, ``[R]``.
        keys: random ones, of each row's step.
        room: tokens that each step may have, ``[R]``.
    """

    cache: Any
    start: Int[Array, " R"]
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
    seen: Bool[Array, "R V"] | None = None
    places: Places | None = None


class Chosen(NamedTuple):
    """Slots that take part in a burst, r of R, and what they read.

    Attributes:
        rows: which slots.
        readers: ``[P, n]``, which of the r read the common past of each problem; any
            where a place is empty. None where nothing is kept in common.
        places: of the r in `readers`, flattened, or None.
    """

    rows: Int[Array, " r"]
    readers: Int[Array, "P n"] | None
    places: Int[Array, " r"] | None


class Seen(NamedTuple):
    """What the host looks at after a burst: rows as above, tokens' time in all."""

    active: Bool[Array, " R"]
    counts: Int[Array, " R"]
    filled: Int[Array, " R"]
    turns: Int[Array, ""]


def empty_slots(
    cache: Dense,
    step_tokens: int,
    keys: Any,
    vocab_size: int | None = None,
    *,
    forced: bool = False,
) -> Slots:
    """Slots without rows; with a vocabulary's size, they note what has been seen."""
    rows = cache.keys[0].shape[0]
    zeros, no = jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool)
    floats = jnp.zeros(rows, weight_dtype())
    return Slots(
        cache=cache,
        start=zeros,
        filled=zeros,
        keys=keys,
        room=zeros,
        token=zeros,
        state=zeros,
        active=no,
        stopped=no,
        counts=zeros,
        log_prob=floats,
        log_correction=floats,
        tokens=jnp.zeros((rows, step_tokens), jnp.int32),
        seen=None if vocab_size is None else jnp.zeros((rows, vocab_size), bool),
        places=no_places(rows) if forced else None,
    )


def own_segment(
    cache: Dense, start: Int[Array, " R"], filled: Int[Array, " R"]
) -> Segment:
    """Caches of slots as attention reads them: first the position `start`."""
    places = jnp.arange(cache.keys[0].shape[-1], dtype=jnp.int32)
    mask = places < (filled - start)[:, None]
    return Segment(*cache, start[:, None] + places, mask)


def common_segment(
    common: Dense, start: Int[Array, " R"], routes: Any = None
) -> Segment:
    """What rows read of the common past: the positions before `start`."""
    owners, _, _, size = common.keys[0].shape
    places = jnp.arange(size, dtype=jnp.int32)
    mask = places < start[:, None]
    return Segment(*common, jnp.broadcast_to(places, (owners, size)), mask, routes)


Burst = tuple[Slots, Int[Array, ""], KeyValues]
"""Slots, tokens that the longest row has written, and the new keys and values."""


def burst(
    policy: LanguageModel,
    boundary: Boundary,
    slots: Slots,
    common: Dense | None,
    chosen: Chosen | None,
    temperatures: Temperatures,
    enough: Int[Array, ""],
    width: int,
    forced: ForcedEnd | None = None,
) -> tuple[Slots, Dense, Seen]:
    """Write tokens until `enough` rows have ended their steps, at most `width` each.

    The caches are only read. What is new is put behind each row by a program of its own
    (`behind`), for a program that reads a cache and writes it copies it as well. Where
    fewer slots are chosen than there are, their caches are copied out once per burst,
    which costs less than to read all of them for every token.

    Args:
        policy: the language model.
        boundary: where steps and solutions end.
        slots: R rows, with room for `width` positions more in every active one.
        common: past of P problems, or None where rows have all of theirs.
        chosen: the slots that take part; all, if None.
        temperatures: of policy and proposal.
        enough: rows.
        width: static.
        forced: what is at a limit; None for nothing.

    Returns:
        The slots, their cache left out; the new keys and values; what the host sees.
    """
    before, cache = slots._replace(cache=()), slots.cache
    part = before
    if chosen is not None:
        part = _rows(part, chosen.rows)
        if chosen.rows.shape[0] < slots.filled.shape[0]:
            cache = _rows(cache, chosen.rows)
    rows, began = part.filled.shape[0], part.active
    context: tuple[Segment, ...] = (own_segment(cache, part.start, part.filled),)
    if common is not None:
        assert chosen is not None
        assert chosen.readers is not None
        assert chosen.places is not None
        shared = Routes(chosen.readers, chosen.places)
        context = (common_segment(common, part.start, shared), *context)
    update = jax.lax.dynamic_update_slice_in_dim

    def write(carry: Burst) -> Burst:
        c, offset, new = carry
        mask = jnp.broadcast_to(jnp.arange(width) < offset, (rows, width))
        hidden, read = policy.trunk(
            c.token[:, None],
            (part.filled + offset)[:, None],
            None,
            (*context, Segment(*new, mask)),
        )
        new = KeyValues(
            update(new.keys, read.keys, offset, axis=-1),
            update(new.values, read.values, offset, axis=-2),
            update(new.positions, read.positions, offset, axis=-1),
        )
        logits = policy.logits(hidden[:, 0])
        c = write_token(c, logits, part.keys, part.room, boundary, temperatures, forced)
        return c, offset + 1, new

    def unfinished(carry: Burst) -> Bool[Array, ""]:
        c, offset, _ = carry
        ended = jnp.sum(began & ~c.active)
        return jnp.any(c.active) & (ended < enough) & (offset < width)

    new = empty_key_values(policy.config, rows, width, slots.cache.keys[0].dtype)
    # The cache is no part of the carry: it is read in the loop and written after it.
    start = (part._replace(keys=()), jnp.zeros((), jnp.int32), new)
    written, offset, new = jax.lax.while_loop(unfinished, write, start)
    written = written._replace(
        keys=part.keys, filled=part.filled + written.counts - part.counts
    )
    after = written
    if chosen is not None:
        after = jax.tree.map(
            lambda old, some: old.at[chosen.rows].set(some), before, written
        )
    seen = Seen(after.active, after.counts, after.filled, offset)
    return after, layers_of(new.keys, new.values), seen


def behind(
    cache: Dense,
    new: Dense,
    rows: Int[Array, " r"],
    places: Int[Array, " r"],
    began: Bool[Array, " r"],
) -> Dense:
    """The cache with what a burst has written behind each row that took part.

    Args:
        cache: of R slots.
        new: of the burst.
        rows: the slots that it was written for.
        places: where each row's cache ended.
        began: who took part.
    """
    order = jnp.argsort(~began, stable=True)
    return merge(cache, new, rows, places, order, jnp.sum(began))


def _rows(tree: Any, rows: Int[Array, " r"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)
