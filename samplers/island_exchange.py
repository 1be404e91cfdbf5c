"""The island particle filter with exchange: islands are resampled as well.

Particles resample within their islands by the usual schedule. When the effective
sample size over the I islands, each weighted by its mean weight W, falls below a
fraction of I, the islands are resampled first, in proportion to W. A copy of island k
contains all its particles, and each of them then has weight

    mean(W) w_i / W_k,

which is the rule of `samplers/parts/reproduction.py` with v_i = W_k. Between exchanges
the islands need not communicate.

A dead particle of a copied island is not copied: the row that it would replace keeps
its prefix and gets weight zero.

References:
    [1] Vergé, Dubarry, Del Moral and Moulines 2015, arXiv 1306.3911 (the double
        bootstrap).
    [2] Del Moral, Moulines, Olsson and Vergé 2016, arXiv 1410.4231 (adaptive
        exchange of islands). Differs: particles are resampled adaptively as well.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.allocation import Deterministic
from tsi.samplers.parts.potentials import Potential, require_running, telescoping
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import Schedule, ess_below
from tsi.samplers.smc import SMCState, smc
from tsi.step_keys import with_typed_key
from tsi.weights import log_mean_exp


def exchange(
    state: SMCState, islands: Int[Array, "I"]
) -> tuple[SMCState, Int[Array, "N"]]:
    """Replace each island k by a copy of island `islands[k]`.

    Returns:
        The state, and the row that each row was copied from, [N].
    """
    num_islands = islands.shape[0]
    places = jnp.arange(state.log_weights.shape[0], dtype=jnp.int32)
    size = places.shape[0] // num_islands
    sources = (islands[:, None] * size + places[:size]).reshape(-1)
    has_weight = state.log_weights[sources] > -jnp.inf
    sources = jnp.where(has_weight, sources, places)

    means = log_mean_exp(state.log_weights.reshape(num_islands, size))
    change = jnp.repeat(log_mean_exp(means) - means[islands], size)
    copied_fields = jax.tree.map(
        lambda leaf: leaf[sources],
        (state.log_potentials, state.log_scores, state.finished),
    )
    log_potentials, log_scores, finished = copied_fields

    def rescale(log_values: Float[Array, "N"]) -> Float[Array, "N"]:
        return jnp.where(has_weight, log_values[sources] + change, -jnp.inf)

    new_state = state._replace(
        log_weights=rescale(state.log_weights),
        log_base=rescale(state.log_base),
        log_potentials=log_potentials,
        log_scores=log_scores,
        finished=finished,
    )
    return new_state, sources


@picklable
def island_exchange(
    num_islands: int = 4,
    *,
    exchange_below: float = 0.5,
    resampling: Resampling = systematic,
    schedule: Schedule | None = None,
    potential: Potential | None = None,
    select: str = "posterior",
) -> Sampler:
    """SMC on islands that are resampled when their weights become unequal.

    Args:
        num_islands: I, of N / I particles each.
        exchange_below: islands are resampled when their ESS is below this fraction of
            I; 0 for never, which is smc(num_islands=I).
        resampling: the scheme, for particles and for islands.
        schedule: when an island resamples its particles; by default ess_below(0.5).
        potential: product, telescoping or uniform; by default telescoping("odds").
        select: how one answer is chosen.

    Returns:
        A `Sampler`. Particles are resampled with the keys of `smc`, islands with
        `fold_in(key, I)`. `init` raises `ConfigurationError` if I does not divide N.

    Raises:
        ConfigurationError: if the fraction is not in [0, 1], or for another potential.
    """
    potential = telescoping("odds") if potential is None else potential
    sampler = smc(
        resampling=resampling,
        schedule=schedule,
        potential=require_running(potential, "island_exchange"),
        select=select,
        num_islands=num_islands,
    )
    is_due = ess_below(exchange_below)

    @with_typed_key
    def ask(key: Key[Array, ""], state: SMCState) -> tuple[SMCState, Int[Array, "N"]]:
        means = log_mean_exp(state.log_weights.reshape(num_islands, -1))
        is_exchanging = is_due(means, state.t)
        indices = resampling(jax.random.fold_in(key, num_islands), means, num_islands)
        exchanged, copied_from = exchange(state, indices)
        places = jnp.arange(copied_from.shape[0], dtype=jnp.int32)
        state = jax.tree.map(
            lambda new, old: jnp.where(is_exchanging, new, old), exchanged, state
        )
        state_after_ask, ancestors = sampler.ask(key, state._replace(ancestors=places))
        ancestors = jnp.where(is_exchanging, copied_from, places)[ancestors]
        state_after_ask = state_after_ask._replace(
            ancestors=ancestors, resampled=state_after_ask.resampled | is_exchanging
        )
        return state_after_ask, ancestors

    # The scheme draws islands even if the schedule never resamples particles.
    exact = not isinstance(resampling, Deterministic) or exchange_below == 0.0
    path_log_weight = sampler.path_log_weight if exact else None
    return sampler._replace(ask=ask, path_log_weight=path_log_weight)
