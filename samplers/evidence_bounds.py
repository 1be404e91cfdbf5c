r"""Two-sided bounds on the log evidence, given one exact posterior sample.

By Jensen's inequality E[log Z_hat] <= log Z for a particle filter's unbiased Z_hat. In
conditional SMC one of the particles is an exact sample of the posterior and is never
replaced. Z_hat then has the distribution of the filter's estimate tilted by
Z_hat / Z, so

    E[log Z_hat] >= log Z,    E[1 / Z_hat] = P(Z_hat > 0) / Z,

where the probability is that of the plain filter; it is one if the filter never loses
all its weight. The gap between the bounds is the sum of two Kullback-Leibler
divergences. It measures how far the filter is from exact, and how much a twist gains.
Exact samples come from enumeration, from rejection sampling, or from problems that the
model itself has simulated.

References:
    [1] Grosse, Ghahramani and Adams 2015, arXiv 1511.02543 (sandwiching).
    [2] Zhao et al. 2024, arXiv 2404.17546, Section 5 (bounds of twisted SMC).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.explore import as_store, put, start, turn
from tsi.explorer import Explorer, ExplorerInfo, Plan, Reply, Request
from tsi.run import run
from tsi.samplers.conditional_smc import conditional_multinomial
from tsi.samplers.parts.population import (
    SMCState,
    fork_population,
    new_population,
    weigh_population,
)
from tsi.samplers.parts.potentials import Potential, product
from tsi.samplers.parts.resampling import multinomial
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc
from tsi.step_keys import AnyKey, single_key, step_limit
from tsi.weights import all_dead, log_mean_exp


class EvidenceBounds(NamedTuple):
    """Two estimates, whose means over keys are below and above the log evidence."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]


class PathState(NamedTuple):
    """A population in which particle 0 repeats the exact sample.

    Attributes:
        population: as in SMC.
        members: the particles, [N].
        done: whether all have finished.
    """

    population: SMCState
    members: Int[Array, "N"]
    done: Bool[Array, ""]


def exact_path_smc(potential: Potential) -> Explorer:
    """Conditional SMC given the path that is stored in row N; particle 0 repeats it.

    Args:
        potential: product, telescoping or uniform.
    """

    def plan(num_particles: int, max_steps: int) -> Plan:
        return Plan(num_particles, num_particles + 1, max_steps)

    def init(key: Key[Array, ""], num_particles: int, max_steps: int) -> PathState:
        places = jnp.arange(num_particles, dtype=jnp.int32)
        return PathState(new_population(num_particles), places, jnp.zeros((), bool))

    def ask(key: Key[Array, ""], state: PathState) -> tuple[PathState, Request]:
        population, places = state.population, state.members
        log_w = population.log_weights
        is_resampling = (
            (population.t > 0) & ~all_dead(log_w) & ~population.recovering[0]
        )
        indices = conditional_multinomial(key, log_w, jnp.ones((), bool))
        ancestors = jnp.where(is_resampling, indices, places)
        equal = jnp.broadcast_to(log_mean_exp(log_w), log_w.shape)
        log_weights = jnp.where(is_resampling, equal, log_w)
        fork = fork_population(population, ancestors, log_weights, is_resampling[None])
        request = Request(
            parents=ancestors,
            slots=places,
            extend=~fork.finished,
            sources=jnp.where(places == 0, places.shape[0], -1).astype(jnp.int32),
        )
        return state._replace(population=fork), request

    def tell(
        key: Key[Array, ""], state: PathState, reply: Reply
    ) -> tuple[PathState, ExplorerInfo]:
        population, info = weigh_population(
            state.population,
            potential,
            reply.log_potentials,
            reply.log_corrections,
            reply.finished,
        )
        done = jnp.all(population.finished)
        turn_info = ExplorerInfo(
            state.population.ancestors,
            state.members,
            info.ess,
            info.num_recoveries,
            info.num_invalid,
        )
        return state._replace(population=population, done=done), turn_info

    return Explorer(plan, init, ask, tell, needs=("replay",))


def evidence_bounds(
    target: Any,
    key: AnyKey,
    exact: Any,
    num_particles: int,
    params: Any = None,
    *,
    potential: Potential | None = None,
) -> EvidenceBounds:
    """One draw of both bounds.

    Args:
        target: a target with `replay`, and with `log_proposal` unless it proposes from
            p.
        key: of either style.
        exact: one finished particle of the target, a sample of its posterior, with a
            leading axis of size one.
        num_particles: N, the exact sample included.
        params: the target's parameters.
        potential: by default product("odds").

    Raises:
        CapabilityError: if the target has no `replay`.
    """
    potential = product("odds") if potential is None else potential
    key_lower, key_upper = jax.random.split(single_key(key))
    sampler = smc(resampling=multinomial, schedule=every_step, potential=potential)
    lower = run(sampler, target, key_lower, num_particles, params).state.log_evidence

    key_init, key_steps = jax.random.split(key_upper)
    explorer = exact_path_smc(potential)
    exploration = start(explorer, target, key_init, num_particles, params)
    row = jnp.array([num_particles], jnp.int32)
    stored = put(as_store(target), exploration.stored, row, exact)
    exploration = jax.lax.fori_loop(
        0,
        step_limit(target, None),
        lambda _, e: turn(explorer, target, key_steps, e, params)[0],
        exploration._replace(stored=stored),
    )
    return EvidenceBounds(lower, exploration.state.population.log_evidence)
