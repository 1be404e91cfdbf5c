"""Sequential Monte Carlo: the particle system on which most methods here are built.

A target proposes steps x_t ~ q and reports log p - log q and a log potential. One
iteration of the particle system is

    a_t   ~ scheme(w_{t-1}),  if the schedule says so        (ask)
    x_t^i ~ q(. | x_{1:t-1}^{a_t^i})                         (the target)
    w_t^i = w~_{t-1}^i * p/q * potential                     (tell)

where w~ are the weights of the offspring, by default equal; see
`samplers/parts/reproduction.py` for other rules. Weights are normalised to mean one,
and log_evidence accumulates the normalisers:

    E[ exp(log_evidence) * (1/N) sum_i w_t^i phi(x_{1:t}^i) ]
        = sum_x p(x) exp(path_log_weight(x)) phi(x)    for every phi.

Resampling takes place within islands: groups of neighbouring particles that never mix.
Offspring get the mean weight of their island, which is its own evidence estimate.

Zero weights: an island whose weights are all zero is not resampled; its particles keep
their indices and continue. If no island has weight left, all particles restart with
equal weights, and log_evidence stays -inf, the true value of the estimate.
`num_recoveries` counts the islands that lost all weight in a step. A score or
correction that is NaN or +inf gives weight zero and is counted in `num_invalid`.

References:
    [1] Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo samplers.
    [2] Chopin and Papaspiliopoulos 2020, An introduction to sequential Monte Carlo,
        Algorithm 10.3 (adaptive resampling).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.population import (
    SMCInfo,
    SMCState,
    fork_population,
    new_population,
    weigh_population,
)
from tsi.samplers.parts.potentials import Potential, telescoping
from tsi.samplers.parts.reproduction import Group, Reproduction, by_priority
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import Schedule, ess_below, never
from tsi.step_keys import with_typed_key
from tsi.weights import all_dead


def _count_islands(num_islands: int | Callable[[int], int], num_particles: int) -> int:
    islands = num_islands(num_particles) if callable(num_islands) else num_islands
    if islands < 1 or num_particles % islands:
        raise ConfigurationError(
            f"{num_particles} particles cannot form {islands} islands of equal size. "
            "Use a number of particles that is a multiple of the number of islands."
        )
    return islands


@picklable
def smc(
    *,
    resampling: Resampling = systematic,
    schedule: Schedule | None = None,
    potential: Potential | None = None,
    select: str = "posterior",
    num_islands: int | Callable[[int], int] = 1,
    reproduction: Reproduction | None = None,
) -> Sampler:
    """Sequential Monte Carlo; by default with adaptive systematic resampling.

    Args:
        resampling: a scheme `(key, log_weights, num_samples) -> ancestors`.
        schedule: `(log_weights, t) -> bool`: every_step, never or ess_below(fraction);
            by default ess_below(0.5).
        potential: product, telescoping, terminal, latest or uniform; by default
            telescoping("odds"), whose target is p(x) times the last potential.
        select: how one answer is chosen.
        num_islands: I, the number of islands, or a function of N that returns it.
        reproduction: how ancestors are drawn and offspring are weighted, instead of
            `resampling`. With a rule that is not exact the sampler has no target.

    Returns:
        A `Sampler`. Island i uses `split(key, I)[i]`, or `key` if I = 1.
        `init` raises `ConfigurationError` if I does not divide N.

    Raises:
        ConfigurationError: for a terminal potential with a schedule other than never.
    """
    schedule = ess_below(0.5) if schedule is None else schedule
    potential = telescoping("odds") if potential is None else potential
    if potential.evidence == "terminal" and schedule is not never:
        raise ConfigurationError(
            "A terminal potential has no weights before the end, so nothing can be "
            "resampled. Use schedule=never, or a telescoping potential."
        )
    rule = by_priority(resampling) if reproduction is None else reproduction
    has_target = schedule is never or rule.exact
    target = potential.path_log_weight if has_target else None

    @with_typed_key
    def init(key: Key[Array, ""], num_particles: int) -> SMCState:
        islands = _count_islands(num_islands, num_particles)
        # Traces the rule, so that a width that does not fit is reported before the run.
        equal = jnp.zeros(num_particles // islands)
        group = Group(equal, equal, equal > 0.0, jnp.ones((), jnp.int32))
        jax.eval_shape(rule.draw, key, group)
        return new_population(num_particles, islands)

    @with_typed_key
    def ask(key: Key[Array, ""], state: SMCState) -> tuple[SMCState, Int[Array, "N"]]:
        if schedule is never:
            return state, state.ancestors
        islands = state.recovering.shape[0]
        log_w = state.log_weights.reshape(islands, -1)
        size = log_w.shape[1]

        is_resampling = jax.vmap(schedule, in_axes=(0, None))(log_w, state.t)
        is_resampling = (
            is_resampling & ~all_dead(log_w) & ~state.recovering & (state.t > 0)
        )
        keys = key[None] if islands == 1 else jax.random.split(key, islands)
        groups = Group(
            log_w,
            state.log_scores.reshape(islands, -1),
            state.finished.reshape(islands, -1),
            jnp.broadcast_to(state.t, islands),
        )
        offspring = jax.vmap(rule.draw)(keys, groups)
        places = jnp.arange(size, dtype=jnp.int32)
        local = jnp.where(is_resampling[:, None], offspring.ancestors, places)
        log_weights = jnp.where(
            is_resampling[:, None], offspring.log_weights, log_w
        ).reshape(-1)

        starts = jnp.arange(islands, dtype=jnp.int32) * size
        ancestors = (local + starts[:, None]).reshape(-1)
        state = fork_population(state, ancestors, log_weights, is_resampling)
        return state, ancestors

    @with_typed_key
    def tell(
        key: Key[Array, ""],
        state: SMCState,
        log_potentials: Float[Array, "N"],
        log_corrections: Float[Array, "N"],
        finished: Bool[Array, "N"],
    ) -> tuple[SMCState, SMCInfo]:
        state, info = weigh_population(
            state, potential, log_potentials, log_corrections, finished
        )
        if target is None:
            # Ranks, and weights after a selection by rank, have no effective sample
            # size.
            info = info._replace(ess=jnp.full_like(info.ess, jnp.nan))
        return state, info

    return Sampler(init, ask, tell, target, select)
