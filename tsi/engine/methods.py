"""The programs of a sampler or an explorer for P problems, each at its own turn.

Samplers and explorers are run in the same way: both request prefixes for W working rows
and receive the log potentials and other numbers of the extended rows. `tell` of one
turn and `ask` of the next are one program, which is small because it handles only
importance weights and indices. It changes only the problems that are ready.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.engine.packing import Packed, pack
from tsi.ess import ess
from tsi.explorer import Explorer, Plan, Reply, Request
from tsi.problem_ids import IdWords, problem_keys
from tsi.sampler import Sampler, has_no_weight
from tsi.step_keys import step_keys


class StepInfo(NamedTuple):
    """The diagnostics of a step in a result, for any sampler.

    Attributes:
        ancestors: within each problem, [P, N].
        ess: effective sample size, [P].
        resampled: whether any particle moved, [P].
        num_recoveries, num_invalid: as in `SMCInfo`; zero if the info has none, [P].
        log_potentials: the newest log potential of each particle, [P, N].
        own: further fields of the info, by name.
    """

    ancestors: Int[Array, "P N"]
    ess: Float[Array, "P"]
    resampled: Bool[Array, "P"]
    num_recoveries: Int[Array, "P"]
    num_invalid: Int[Array, "P"]
    log_potentials: Float[Array, "P N"]
    own: dict[str, Any]


class Method(NamedTuple):
    """A sampler's or explorer's programs for P problems.

    Attributes:
        plan: working rows, stored rows and turns of a problem.
        begin: `(key, ids) -> (key_steps, state, request)`.
        turn: `(key_steps, turns [P], state, ready [P], parents [P, W], reply) ->
            (state, packed (request, info, continues [P]))`.
    """

    plan: Plan
    begin: Any
    turn: Any


def step_info(info: Any, ancestors: Int[Array, "P N"], state: Any) -> StepInfo:
    """A step's diagnostics: fields of the info, or computed from the state."""
    zeros = jnp.zeros(ancestors.shape[0], jnp.int32)
    default = StepInfo(
        ancestors,
        ess(state.log_weights),
        jnp.any(ancestors != jnp.arange(ancestors.shape[1]), axis=1),
        zeros,
        zeros,
        state.log_potentials,
        {},
    )
    known_names = {*StepInfo._fields} - {"own"}
    of_steps = {k: v for k, v in fields_of(info).items() if k in known_names}
    return default._replace(**of_steps, own=own_fields(info, known_names))


def fields_of(info: Any) -> dict[str, Any]:
    """The fields of an info that is a dictionary or a NamedTuple; empty otherwise."""
    return info if isinstance(info, dict) else getattr(info, "_asdict", dict)()


def own_fields(info: Any, known_names: Iterable[str]) -> dict[str, Any]:
    """The fields that are not in `known_names`: diagnostics of custom samplers."""
    return {k: v for k, v in fields_of(info).items() if k not in known_names}


def plan_of(sampler: Sampler | Explorer, num_particles: int, max_steps: int) -> Plan:
    """Numbers of working rows, stored rows and turns of a problem."""
    if isinstance(sampler, Explorer):
        return sampler.plan(num_particles, max_steps)
    return Plan(num_particles, 0, max_steps)


def method_of(
    sampler: Sampler | Explorer, num_particles: int, max_steps: int
) -> Method:
    """The programs of one method."""
    make = _explorer_method if isinstance(sampler, Explorer) else _sampler_method
    return make(sampler, num_particles, max_steps)


@functools.lru_cache(maxsize=256)
def _sampler_method(sampler: Sampler, num_particles: int, max_steps: int) -> Method:
    def request_of(ancestors: Int[Array, "P N"], extend: Bool[Array, "P N"]) -> Request:
        return Request(ancestors, ancestors, extend)

    @jax.jit
    def begin(
        key: Key[Array, ""], ids: IdWords
    ) -> tuple[Key[Array, " P"], Any, Request]:
        key_steps, start = _run_keys(key, ids)
        state = jax.vmap(lambda k: sampler.init(k, num_particles))(start)
        asks = jax.vmap(lambda k: step_keys(k, 0).ask)(key_steps)
        state, ancestors = jax.vmap(sampler.ask)(asks, state)
        return key_steps, state, request_of(ancestors, jnp.ones(ancestors.shape, bool))

    @jax.jit
    def turn(
        key_steps: Key[Array, " P"],
        turns: Int[Array, " P"],
        state: Any,
        ready: Bool[Array, " P"],
        parents: Int[Array, "P W"],
        reply: Reply,
    ) -> tuple[Any, Packed]:
        tells = jax.vmap(lambda k, t: step_keys(k, t).tell)(key_steps, turns)
        state_after, info = jax.vmap(sampler.tell)(
            tells,
            state,
            reply.log_potentials,
            reply.log_corrections,
            reply.finished,
        )
        info = step_info(info, parents, state_after)
        state = _select_ready(state_after, state, ready)
        pruned = jnp.zeros(parents.shape, bool)
        if sampler.prunes:
            pruned = has_no_weight(state)
        is_done = jnp.all(reply.finished | pruned, axis=1) | (turns + 1 >= max_steps)
        continues = ready & ~is_done
        asks = jax.vmap(lambda k, t: step_keys(k, t + 1).ask)(key_steps, turns)
        state_asked, ancestors = jax.vmap(sampler.ask)(asks, state)
        state = _select_ready(state_asked, state, continues)
        places = jnp.arange(num_particles, dtype=jnp.int32)
        ancestors = jnp.where(continues[:, None], ancestors, places)
        if sampler.prunes:
            pruned = has_no_weight(state)
        return state, pack((request_of(ancestors, ~pruned), info, continues))

    return Method(plan_of(sampler, num_particles, max_steps), begin, turn)


@functools.lru_cache(maxsize=256)
def _explorer_method(explorer: Explorer, num_particles: int, max_steps: int) -> Method:
    plan = plan_of(explorer, num_particles, max_steps)

    @jax.jit
    def begin(
        key: Key[Array, ""], ids: IdWords
    ) -> tuple[Key[Array, " P"], Any, Request]:
        key_steps, start = _run_keys(key, ids)
        state = jax.vmap(lambda k: explorer.init(k, num_particles, max_steps))(start)
        asks = jax.vmap(lambda k: step_keys(k, 0).ask)(key_steps)
        state, request = jax.vmap(explorer.ask)(asks, state)
        return key_steps, state, request

    @jax.jit
    def turn(
        key_steps: Key[Array, " P"],
        turns: Int[Array, " P"],
        state: Any,
        ready: Bool[Array, " P"],
        parents: Int[Array, "P W"],
        reply: Reply,
    ) -> tuple[Any, Packed]:
        tells = jax.vmap(lambda k, t: step_keys(k, t).tell)(key_steps, turns)
        state_after, info = jax.vmap(explorer.tell)(tells, state, reply)
        state = _select_ready(state_after, state, ready)
        continues = ready & ~state.done & (turns + 1 < plan.turns)
        asks = jax.vmap(lambda k, t: step_keys(k, t + 1).ask)(key_steps, turns)
        state_asked, request = jax.vmap(explorer.ask)(asks, state)
        state = _select_ready(state_asked, state, continues)
        return state, pack((request, info, continues))

    return Method(plan, begin, turn)


def _run_keys(
    key: Key[Array, ""], ids: IdWords
) -> tuple[Key[Array, " P"], Key[Array, " P"]]:
    """Keys of the steps and of the sampler's start, per problem, as in `tsi.run`."""
    keys = jax.vmap(jax.random.split)(problem_keys(key, ids))
    key_init, key_steps = keys[:, 0], keys[:, 1]
    return key_steps, jax.vmap(jax.random.fold_in, (0, None))(key_init, 0)


def _select_ready(new: Any, old: Any, ready: Bool[Array, "P"]) -> Any:
    def keep(a: Array, b: Array) -> Array:
        return jnp.where(ready.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(keep, new, old)


enter = jax.jit(_select_ready)
