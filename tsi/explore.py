"""The driver of explorers: one turn, and the loop over turns.

A turn consists of ask, gather, cut back, step, store, tell. Rows that take no step cost
nothing if the target can propose for a subset of rows (`propose_some`); otherwise their
proposals are discarded.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.explorer import Explorer, Reply, Request
from tsi.step_keys import AnyKey, StepKeys, single_key, step_keys, step_limit
from tsi.target import Particles, require


class Exploration(NamedTuple):
    """The state of a run between two turns.

    Attributes:
        stored: M prefixes.
        depths: number of steps of each stored prefix, [M].
        state: the explorer's state.
        turn: number of turns taken.
    """

    stored: Particles
    depths: Int[Array, "M"]
    state: Any
    turn: Int[Array, ""]


def as_store(target: Any) -> Any:
    """The target's version that stores prefixes; for most targets the target itself."""
    method = getattr(target, "as_store", None)
    return target if method is None else method()


def check_needs(explorer: Explorer, target: Any) -> None:
    """Refuse a target that lacks a capability of `explorer.needs`.

    Raises:
        CapabilityError: names the first missing method.
    """
    for capability in explorer.needs:
        require(target, capability, "This sampler")


def start(
    explorer: Explorer,
    target: Any,
    key: AnyKey,
    num_particles: int,
    params: Any = None,
    *,
    max_steps: int | None = None,
) -> Exploration:
    """Empty prefixes and the explorer's first state.

    Args:
        explorer: the explorer.
        target: the target.
        key: the run's `key_init`; see `tsi.step_keys`.
        num_particles: N, static.
        params: the target's parameters.
        max_steps: step limit, static; by default the target's.

    Raises:
        CapabilityError: the target lacks what the explorer needs.
        ConfigurationError: the explorer cannot use N particles.
    """
    key = single_key(key)
    target = as_store(target)
    check_needs(explorer, target)
    limit = step_limit(target, max_steps)
    plan = explorer.plan(num_particles, limit)
    state = explorer.init(jax.random.fold_in(key, 0), num_particles, limit)
    stored = target.init(jax.random.fold_in(key, 1), plan.stored, params)
    zero = jnp.zeros((), jnp.int32)
    return Exploration(stored, jnp.zeros(plan.stored, jnp.int32), state, zero)


def put(target: Any, stored: Particles, slots: Int[Array, "W"], rows: Any) -> Particles:
    """Overwrite the stored rows at `slots`; slots out of range are dropped."""
    method = getattr(target, "put", None)
    if method is not None:
        return method(stored, slots, rows)

    def write(old: Array, new: Array) -> Array:
        # Arrays made from lists are int64 under x64, so rows are cast to the store's
        # types. Keys have only one type and cannot be cast.
        new = new if new.dtype == old.dtype else new.astype(old.dtype)
        return old.at[slots].set(new, mode="drop")

    return jax.tree.map(write, stored, rows)


class StepResult(NamedTuple):
    """Rows after a step: the rows to store, and the reply to the explorer."""

    rows: Particles
    depths: Int[Array, "W"]
    reply: Reply


def step_rows(
    target: Any,
    key: Key[Array, "..."],
    rows: Particles,
    depths: Int[Array, "W"],
    request: Request,
    sources: Particles | None,
    params: Any,
    limit: int,
) -> StepResult:
    """Cut rows back, and extend those of the request by one step.

    Args:
        target: the target.
        key: of this turn's proposals.
        rows: the parents, gathered.
        depths: number of steps of each.
        request: of the explorer.
        sources: the prefixes whose steps are repeated, gathered; None if there are
            none.
        params: the target's parameters.
        limit: number of steps after which every row counts as finished.
    """
    if request.depths is not None:
        depths = jnp.minimum(depths, request.depths)
        rows = target.truncate(rows, depths, params)
    done = target.finished(rows) | (depths >= limit)
    active = request.extend & ~done
    log_prob = getattr(target, "log_prob", None)
    before = None if log_prob is None else log_prob(rows, params)
    is_new = active
    if request.sources is not None:
        is_new = active & (request.sources < 0)
    after, corrections = propose_some(target, key, depths, rows, is_new, params)
    log_probs = jnp.zeros_like(corrections)
    if log_prob is not None:
        log_probs = jnp.where(is_new, log_prob(after, params) - before, 0.0)
    if request.sources is not None:
        is_repeated = active & ~is_new
        after_replay, log_p = target.replay(depths, rows, sources, params)
        after = put(target, after, _slots_where(is_repeated), after_replay)
        ratio = _replayed_correction(target, rows, after_replay, log_p, params)
        corrections = jnp.where(is_repeated, ratio, corrections)
        log_probs = jnp.where(is_repeated, log_p, log_probs)
    log_potentials = target.log_potential(depths, after, params)
    depths = depths + active
    finished = target.finished(after) | (depths >= limit)
    reply = Reply(log_potentials, corrections, log_probs, finished)
    return StepResult(after, depths, reply)


def extend_stored_prefixes(
    target: Any,
    key: Key[Array, "..."],
    stored: Particles,
    depths: Int[Array, "M"],
    request: Request,
    params: Any,
    limit: int,
) -> tuple[Particles, Int[Array, "M"], StepResult]:
    """Take the requested rows out of the store, extend them and store the children.

    Arguments as in `step_rows`, with the whole store in place of its rows.
    """
    rows = target.gather(stored, request.parents)
    sources = None
    if request.sources is not None:
        sources = target.gather(stored, jnp.maximum(request.sources, 0))
    result = step_rows(
        target, key, rows, depths[request.parents], request, sources, params, limit
    )
    stored = put(target, stored, request.slots, result.rows)
    depths = depths.at[request.slots].set(result.depths, mode="drop")
    return stored, depths, result


def _replayed_correction(
    target: Any, before: Particles, after: Particles, log_p: Any, params: Any
) -> Float[Array, "W"]:
    """log p - log q of repeated steps; a target without `log_proposal` has q = p."""
    log_proposal = getattr(target, "log_proposal", None)
    if log_proposal is None:
        return jnp.zeros_like(log_p)
    return log_p - (log_proposal(after, params) - log_proposal(before, params))


def _slots_where(mask: Bool[Array, "W"]) -> Int[Array, "W"]:
    """Each row's own index where the mask is set; else an index out of range."""
    size = mask.shape[0]
    return jnp.where(mask, jnp.arange(size, dtype=jnp.int32), size)


def propose_some(
    target: Any, key: Any, depths: Any, rows: Any, active: Any, params: Any
) -> tuple[Particles, Float[Array, "W"]]:
    """One step for the rows `active [W]`; the others are not changed."""
    some = getattr(target, "propose_some", None)
    if some is not None:
        return some(key, depths, rows, params, active)
    after, corrections = target.propose(key, depths, rows, params)
    return put(target, after, _slots_where(~active), rows), corrections


def turn(
    explorer: Explorer,
    target: Any,
    key_steps: AnyKey,
    exploration: Exploration,
    params: Any = None,
    *,
    max_steps: int | None = None,
) -> tuple[Exploration, Any]:
    """Run one turn; also return the explorer's info."""
    target = as_store(target)
    stored, depths, state, count = exploration
    keys: StepKeys = step_keys(key_steps, count)
    state, request = explorer.ask(keys.ask, state)
    limit = step_limit(target, max_steps)
    stored, depths, result = extend_stored_prefixes(
        target, keys.propose, stored, depths, request, params, limit
    )
    state, info = explorer.tell(keys.tell, state, result.reply)
    return Exploration(stored, depths, state, count + 1), info


def explore(
    explorer: Explorer,
    target: Any,
    key: AnyKey,
    num_particles: int,
    params: Any = None,
    *,
    max_steps: int | None = None,
) -> tuple[Exploration, Any]:
    """Run turns until the explorer is done; also return its infos, zero-padded.

    Arguments as in `start`; `key` is the run's key, as in `tsi.run`.
    """
    key_init, key_steps = jax.random.split(single_key(key))
    first = start(
        explorer, target, key_init, num_particles, params, max_steps=max_steps
    )
    limit = explorer.plan(num_particles, step_limit(target, max_steps)).turns

    def advance(carry: tuple[Exploration, Any]) -> tuple[Exploration, Any]:
        exploration, infos = carry
        index = exploration.turn
        exploration, info = turn(
            explorer, target, key_steps, exploration, params, max_steps=max_steps
        )
        infos = jax.tree.map(lambda stack, leaf: stack.at[index].set(leaf), infos, info)
        return exploration, infos

    def is_unfinished(carry: tuple[Exploration, Any]) -> Bool[Array, ""]:
        exploration, _ = carry
        return (exploration.turn < limit) & ~exploration.state.done

    _, info = jax.eval_shape(
        lambda e: turn(explorer, target, key_steps, e, params, max_steps=max_steps),
        first,
    )
    infos = jax.tree.map(lambda leaf: jnp.zeros((limit, *leaf.shape), leaf.dtype), info)
    return jax.lax.while_loop(is_unfinished, advance, (first, infos))
