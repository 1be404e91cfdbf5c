"""Slots: the rows, of any problems, for which tokens are drawn now.

A slot holds one row's cache contiguously: all of its past, or the part after the past
that all rows of its problem share, which is stored once per problem. A burst draws some
tokens for every chosen slot in one compiled loop, and stops when enough rows have ended
their steps. Random numbers are those of :mod:`tsi.decoding.decode_step`: they depend on
the problem, the particle, the step and the token, and not on the slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.boundary import Boundary
from tsi.decoding.decode_step import empty_key_values, write_token
from tsi.decoding.forced_end import ForcedEnd, Places, empty_places
from tsi.decoding.token_confidence import TokenConfidence
from tsi.decoding.token_draws import Temperatures
from tsi.engine.paging.pages import Dense, layers_of, merge
from tsi.models.attention import Routes, Segment
from tsi.models.decode_kernel import block_of
from tsi.models.decoder import KeyValues, LanguageModel
from tsi.weights import weight_dtype


class Slots(NamedTuple):
    """R rows in slots; fields without a description are those of
    :class:`tsi.decoding.decode_step.Decoding`.

    Attributes:
        cache: :class:`tsi.engine.paging.pages.Dense` rows of S positions.
        start: the first position in the slot's cache, ``[R]``; those before it are in
            the common past.
        filled: number of positions in the common past and the slot's cache together,
            which is the position of the row's newest token, ``[R]``.
        keys: PRNG keys of each row's step.
        room: the maximum number of tokens of each step, ``[R]``.
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
    confidences: Float[Array, "R C"] | None = None


class Chosen(NamedTuple):
    """The r of R slots that take part in a burst, and the common pasts that these read.

    Attributes:
        rows: which slots.
        readers: ``[P, n]``, which of the r slots read the common past of each problem,
            padded with any index; None without common pasts.
        places: index of each of the r slots in the flattened `readers`, or None.
    """

    rows: Int[Array, " r"]
    readers: Int[Array, "P n"] | None
    places: Int[Array, " r"] | None


class BurstStatus(NamedTuple):
    """What the host reads after a burst: fields of `Slots`, and the tokens drawn."""

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
    confident: bool = False,
) -> Slots:
    """Slots without rows.

    Args:
        cache: of R rows.
        step_tokens: C.
        keys: PRNG keys of R rows.
        vocab_size: V if the tokens that occurred are recorded; else None.
        forced: whether tokens may be forced.
        confident: whether the policy's confidence at each token is recorded.
    """
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
        places=empty_places(rows) if forced else None,
        confidences=jnp.zeros((rows, step_tokens), weight_dtype())
        if confident
        else None,
    )


def slot_segment(
    cache: Dense, start: Int[Array, " R"], filled: Int[Array, " R"]
) -> Segment:
    """Caches of slots as attention reads them, from position `start` on."""
    places = jnp.arange(cache.keys[0].shape[-1], dtype=jnp.int32)
    mask = places < (filled - start)[:, None]
    return Segment(*cache, start[:, None] + places, mask)


def filled_segment(
    cache: Dense, start: Int[Array, " R"], filled: Int[Array, " R"]
) -> Segment:
    """`slot_segment` for the kernel that reads filled positions only.

    Its keys are in the order of positions, in a copy that is made once per burst.
    """
    segment = slot_segment(cache, start, filled)
    if not block_of(segment.mask.shape[-1]):
        return segment
    keys = tuple(jnp.swapaxes(keys, -1, -2) for keys in segment.keys)
    return segment._replace(keys=keys, lengths=filled - start)


def common_segment(
    common: Dense, start: Int[Array, " R"], routes: Any = None
) -> Segment:
    """The part of the common past that rows read: the positions before `start`."""
    owners, _, _, size = common.keys[0].shape
    places = jnp.arange(size, dtype=jnp.int32)
    mask = places < start[:, None]
    return Segment(*common, jnp.broadcast_to(places, (owners, size)), mask, routes)


Burst = tuple[Slots, Int[Array, ""], KeyValues]
"""Slots, number of tokens drawn for the longest row, and new keys and values."""


def burst(
    policy: LanguageModel,
    boundary: Boundary,
    slots: Slots,
    common: Dense | None,
    chosen_slots: Chosen | None,
    temperatures: Temperatures,
    min_ended: Int[Array, ""],
    width: int,
    forced: ForcedEnd | None = None,
    confidence: TokenConfidence | None = None,
    *,
    by_kernel: bool = False,
) -> tuple[Slots, Dense, BurstStatus]:
    """Draw at most `width` tokens per slot, until `min_ended` rows have ended steps.

    The caches are only read. A separate program (`append_burst`) appends the new keys
    and values to each row, since a program that both reads and writes a cache copies
    it. If only some slots are chosen, their caches are copied once per burst, which
    costs less than reading all caches for every token.

    Args:
        policy: the language model.
        boundary: where steps and solutions end.
        slots: R rows, with room for `width` more positions in every active one.
        common: common pasts of P problems, or None if slots hold the whole past.
        chosen_slots: the slots that take part; None for all.
        temperatures: of policy and proposal.
        min_ended: number of rows that must end their steps.
        width: the maximum number of tokens per slot; static.
        forced: end that is forced at a limit, or None.
        confidence: confidence measure that is recorded at each token, or None.
        by_kernel: whether a kernel attends to the caches of slots.

    Returns:
        The slots without their cache, the new keys and values, and the status.
    """
    before, cache = slots._replace(cache=()), slots.cache
    part = before
    if chosen_slots is not None:
        part = _rows(part, chosen_slots.rows)
        if chosen_slots.rows.shape[0] < slots.filled.shape[0]:
            cache = _rows(cache, chosen_slots.rows)
    rows, was_active = part.filled.shape[0], part.active
    segment_of = filled_segment if by_kernel else slot_segment
    context: tuple[Segment, ...] = (segment_of(cache, part.start, part.filled),)
    if common is not None:
        assert chosen_slots is not None
        assert chosen_slots.readers is not None
        assert chosen_slots.places is not None
        shared = Routes(chosen_slots.readers, chosen_slots.places)
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
        c = write_token(
            c,
            logits,
            part.keys,
            part.room,
            boundary,
            temperatures,
            forced,
            confidence,
        )
        return c, offset + 1, new

    def is_unfinished(carry: Burst) -> Bool[Array, ""]:
        c, offset, _ = carry
        num_ended = jnp.sum(was_active & ~c.active)
        return jnp.any(c.active) & (num_ended < min_ended) & (offset < width)

    new = empty_key_values(policy.config, rows, width, slots.cache.keys[0].dtype)
    # The cache is not in the carry: the loop only reads it, and it is written
    # afterwards.
    start = (part._replace(keys=()), jnp.zeros((), jnp.int32), new)
    slots_after, offset, new = jax.lax.while_loop(is_unfinished, write, start)
    slots_after = slots_after._replace(
        keys=part.keys, filled=part.filled + slots_after.counts - part.counts
    )
    after = slots_after
    if chosen_slots is not None:
        after = jax.tree.map(
            lambda old, some: old.at[chosen_slots.rows].set(some), before, slots_after
        )
    status = BurstStatus(after.active, after.counts, after.filled, offset)
    return after, layers_of(new.keys, new.values), status


def append_burst(
    cache: Dense,
    new: Dense,
    rows: Int[Array, " r"],
    places: Int[Array, " r"],
    was_active: Bool[Array, " r"],
) -> Dense:
    """Append the keys and values of a burst to each row that took part.

    Args:
        cache: of R slots.
        new: keys and values of the burst.
        rows: the slot of each.
        places: the length of each slot's cache before the burst.
        was_active: whether each slot took part.
    """
    order = jnp.argsort(~was_active, stable=True)
    return merge(cache, new, rows, places, order, jnp.sum(was_active))


def _rows(tree: Any, rows: Int[Array, " r"]) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)
