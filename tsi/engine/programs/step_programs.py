"""Rows take a step: it is drawn in a slot or repeated, and the reward reads it.

The burst that draws tokens is in :mod:`tsi.engine.programs.slots`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from tsi.engine.paging import pages as paging
from tsi.engine.paging.pages import Dense, layers_of
from tsi.engine.programs.row_replies import RowReplies, replies_of
from tsi.engine.programs.rows import (
    RewardCaches,
    RewardChange,
    Stored,
    of_rows,
    put,
    take,
)
from tsi.engine.programs.slots import Slots, common_segment, slot_segment
from tsi.models.attention import Segment
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.reasoning.target import ReasoningTarget
from tsi.step_keys import step_keys
from tsi.weights import weight_dtype


def admit(
    target: ReasoningTarget,
    slots: Slots,
    at: Int[Array, " A"],
    stored: Stored,
    rows: Int[Array, " A"],
    start: Int[Array, " A"],
    filled: Int[Array, " A"],
    problems: Int[Array, " A"],
    key_steps: Key[Array, " A"],
    turns: Int[Array, " A"],
    places: Int[Array, " A"],
    params: ReasoningParams,
) -> Slots:
    """Put rows into slots, ready to draw a step.

    Args:
        target: for its limits.
        slots: R slots without their cache, which holds the rows' past already.
        at: slot of each row; R for no slot.
        stored: all rows.
        rows: A working rows.
        start: position at which the cache of each row's slot begins.
        filled: number of positions of each row's past.
        problems: of each row.
        key_steps: key of the steps of each row's problem.
        turns: number of the turn of each row's problem.
        places: number of each row within its problem.
        params: weights and temperatures.
    """
    particles = jax.tree.map(lambda leaf: leaf[rows], stored.rows)
    keys = jax.vmap(
        lambda key, turn, place: jax.random.fold_in(step_keys(key, turn).propose, place)
    )(key_steps, turns, places)
    room = target.max_tokens - particles.lengths
    zeros = jnp.zeros(rows.shape, jnp.int32)
    floats = jnp.zeros(rows.shape, weight_dtype())
    new = slots._replace(
        cache=(),
        start=start,
        filled=filled,
        keys=keys,
        room=jnp.minimum(room, target.max_step_tokens),
        token=particles.pending,
        state=particles.boundary_state,
        active=jnp.ones(rows.shape, bool),
        stopped=jnp.zeros(rows.shape, bool),
        counts=zeros,
        log_prob=floats,
        log_correction=floats,
        tokens=jnp.zeros((*rows.shape, slots.tokens.shape[1]), jnp.int32),
        seen=of_rows(params, stored, problems).mark_seen(
            particles.tokens, particles.lengths
        ),
        places=target.places(particles),
        confidences=None
        if slots.confidences is None
        else jnp.zeros((*rows.shape, slots.confidences.shape[1]), weight_dtype()),
    )
    return jax.tree.map(
        lambda old, values: old.at[at].set(values, mode="drop"), slots, new
    )


def end_step(
    target: ReasoningTarget,
    structure: Any,
    stored: Stored,
    slots: Slots,
    common: Dense | None,
    at: Int[Array, " A"],
    rows: Int[Array, " A"],
    problems: Int[Array, " A"],
    depths: Int[Array, " A"],
    caches: RewardCaches,
    width: int,
    params: ReasoningParams,
) -> tuple[Stored, RowReplies, RewardCaches, RewardChange]:
    """Let the reward read the steps that have ended in slots.

    Args:
        target: policy and reward.
        structure: of the reward's state.
        stored: all rows.
        slots: where the steps are.
        common: common pasts of P problems, or None if slots hold the whole past.
        at: the slot of each row.
        rows: A working rows; indices out of range are dropped.
        problems: of each row.
        depths: index of each step.
        caches: the reward's growing caches of these rows, with room for the step.
        width: the maximum number of tokens of a step; static.
        params: weights and temperatures.

    Returns:
        The store, the replies of the rows, the reward's caches, and what has changed in
        them.
    """
    row_params = of_rows(params, stored, problems)
    prefixes = take(stored, rows, rows, problems, caches, structure)
    step = jax.tree.map(lambda leaf: leaf[at], slots._replace(cache=()))
    in_store = rows < stored.rows.lengths.shape[0]
    step = step._replace(
        counts=jnp.where(in_store, step.counts, 0),
        tokens=step.tokens[:, :width],
        confidences=None if step.confidences is None else step.confidences[:, :width],
    )
    cache = jax.tree.map(lambda leaf: leaf[at], slots.cache)
    own_segment = slot_segment(cache, step.start, step.filled)
    segments: tuple[Segment, ...] = (own_segment,)
    if common is not None:
        past = jax.tree.map(lambda leaf: leaf[problems], common)
        segments = (common_segment(past, step.start), own_segment)
    read = target.read_step(depths, prefixes, step, row_params, segments)
    stored, caches, change = put(stored, rows, read, caches)
    return stored, replies_of(target, read, step, row_params), caches, change


def repeat(
    store: ReasoningStore,
    structure: Any,
    stored: Stored,
    cache: Dense,
    filled: Int[Array, " A"],
    rows: Int[Array, " A"],
    sources: Int[Array, " A"],
    problems: Int[Array, " A"],
    depths: Int[Array, " A"],
    caches: RewardCaches,
    params: ReasoningParams,
    width: int,
) -> tuple[Stored, RowReplies, RewardCaches, RewardChange, Dense]:
    """Let rows repeat steps of other rows, and let the reward read these steps.

    Arguments and results are those of `end_step`, and in addition the policy's caches
    of the rows, with room for the step.
    """
    target = store.target
    row_params = of_rows(params, stored, problems)
    prefixes = take(stored, rows, rows, problems, caches, structure)
    others = jax.tree.map(lambda leaf: leaf[sources], stored.rows)
    zeros = jnp.zeros_like(filled)
    context = (slot_segment(cache, zeros, filled),)
    step, impossible = store.repeat_step(
        depths, prefixes, others, row_params, context, width
    )
    in_store = rows < stored.rows.lengths.shape[0]
    step = step._replace(counts=jnp.where(in_store, step.counts, 0))
    count = rows.shape[0]
    cache = paging.merge(
        cache,
        layers_of(step.new.keys, step.new.values),
        jnp.arange(count),
        filled,
        jnp.arange(count),
        jnp.int32(count),
    )
    segments = (slot_segment(cache, zeros, filled + step.counts),)
    read = target.read_step(
        depths, prefixes, step, row_params, segments, is_drawn=False
    )
    stored, caches, change = put(stored, rows, read, caches)
    replies = replies_of(target, read, step, row_params)
    log_prob = jnp.where(impossible, -jnp.inf, step.log_prob)
    replies = replies._replace(log_probs=log_prob)
    return stored, replies, caches, change, cache
