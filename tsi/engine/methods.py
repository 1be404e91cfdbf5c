"""What a sampler or an explorer decides for P problems, each at its own turn.

Samplers and explorers are driven alike: both ask for W working rows to be given a
prefix and extended, and are told what came of it. `tell` of one turn and `ask` of the
next are one program, small, since it sees weights alone; it runs for the problems that
are ready and leaves the others as they are.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.explorer import Explorer, Plan, Reply, Request
from tsi.problem_ids import IdWords, problem_keys
from tsi.sampler import Sampler, has_no_weight
from tsi.step_keys import step_keys
from tsi.weights import ess


class StepInfo(NamedTuple):
    """What a result says of a step, whatever the sampler's own info has.

    Attributes:
        ancestors: within each problem, [P, N].
        ess: effective sample size, [P].
        resampled: whether any particle moved, [P].
        num_recoveries, num_invalid: as in `SMCInfo`; zero if the info has none, [P].
        log_potentials: each particle's last, [P, N].
        own: what else the info has, by field.
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
            (state, request, info, going_on [P])`.
    """

    plan: Plan
    begin: Any
    turn: Any


def step_info(info: Any, ancestors: Int[Array, "P N"], state: Any) -> StepInfo:
    """A step's numbers: those of the info, or else what the driver itself has seen."""
    zeros = jnp.zeros(ancestors.shape[0], jnp.int32)
    seen = StepInfo(
        ancestors,
        ess(state.log_weights),
        jnp.any(ancestors != jnp.arange(ancestors.shape[1]), axis=1),
        zeros,
        zeros,
        state.log_potentials,
        {},
    )
    known = {*StepInfo._fields} - {"own"}
    of_steps = {k: v for k, v in fields_of(info).items() if k in known}
    return seen._replace(**of_steps, own=own_fields(info, known))


def fields_of(info: Any) -> dict[str, Any]:
    """The fields of an info, which is a dictionary, a NamedTuple or something else."""
    return info if isinstance(info, dict) else getattr(info, "_asdict", dict)()


def own_fields(info: Any, known: Iterable[str]) -> dict[str, Any]:
    """Those that are not known: what a sampler of one's own says of its steps."""
    return {k: v for k, v in fields_of(info).items() if k not in known}


def plan_of(sampler: Sampler | Explorer, num_particles: int, max_steps: int) -> Plan:
    """Working rows, stored rows and turns of a problem."""
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
    ) -> tuple[Any, Request, Any, Bool[Array, " P"]]:
        tells = jax.vmap(lambda k, t: step_keys(k, t).tell)(key_steps, turns)
        told, info = jax.vmap(sampler.tell)(
            tells,
            state,
            reply.log_potentials,
            reply.log_corrections,
            reply.finished,
        )
        info = step_info(info, parents, told)
        state = _of_ready(told, state, ready)
        rests = jnp.zeros(parents.shape, bool)
        if sampler.prunes:
            rests = has_no_weight(state)
        over = jnp.all(reply.finished | rests, axis=1) | (turns + 1 >= max_steps)
        going_on = ready & ~over
        asks = jax.vmap(lambda k, t: step_keys(k, t + 1).ask)(key_steps, turns)
        asked, ancestors = jax.vmap(sampler.ask)(asks, state)
        state = _of_ready(asked, state, going_on)
        places = jnp.arange(num_particles, dtype=jnp.int32)
        ancestors = jnp.where(going_on[:, None], ancestors, places)
        if sampler.prunes:
            rests = has_no_weight(state)
        return state, request_of(ancestors, ~rests), info, going_on

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
    ) -> tuple[Any, Request, Any, Bool[Array, " P"]]:
        tells = jax.vmap(lambda k, t: step_keys(k, t).tell)(key_steps, turns)
        told, info = jax.vmap(explorer.tell)(tells, state, reply)
        state = _of_ready(told, state, ready)
        going_on = ready & ~state.done & (turns + 1 < plan.turns)
        asks = jax.vmap(lambda k, t: step_keys(k, t + 1).ask)(key_steps, turns)
        asked, request = jax.vmap(explorer.ask)(asks, state)
        state = _of_ready(asked, state, going_on)
        return state, request, info, going_on

    return Method(plan, begin, turn)


def _run_keys(
    key: Key[Array, ""], ids: IdWords
) -> tuple[Key[Array, " P"], Key[Array, " P"]]:
    """Keys of steps and of the sampler's start, for every problem, as `tsi.run` has."""
    keys = jax.vmap(jax.random.split)(problem_keys(key, ids))
    key_init, key_steps = keys[:, 0], keys[:, 1]
    return key_steps, jax.vmap(jax.random.fold_in, (0, None))(key_init, 0)


def _of_ready(new: Any, old: Any, ready: Bool[Array, "P"]) -> Any:
    def keep(a: Array, b: Array) -> Array:
        return jnp.where(ready.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(keep, new, old)


enter = jax.jit(_of_ready)
