"""SMC that stops particles of small weight by Russian roulette.

Let w be the weight of an unfinished particle relative to the mean weight. Before each
step, if w < epsilon, the particle is killed with probability 1 - w / epsilon, and
otherwise continues with weight epsilon. Its expected weight stays w, so the target does
not change. The slot of a killed particle stays unused until the schedule resamples:
after `ask`, `state.log_weights` is -inf there, and a driver may skip such rows.
Finished particles are exempt, since they cost no further steps.

If epsilon <= 1, the particle of largest weight is never killed, so some weight is left.

References:
    [1] Kahn 1956, Use of different Monte Carlo sampling techniques (Russian roulette).
    [2] Fearnhead and Clifford 2003, On-line inference for hidden Markov models via
        particle filters (rejection of small weights without bias).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
from tsi.log_uniform import log_uniform
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import Potential, require_running, telescoping
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import Schedule
from tsi.samplers.smc import SMCState, smc
from tsi.step_keys import with_typed_key
from tsi.weights import log_mean_exp


def russian_roulette(
    key: Key[Array, ""],
    log_weights: Float[Array, "N"],
    exempt: Bool[Array, "N"],
    epsilon: float,
) -> Float[Array, "N"]:
    """Set weights below epsilon times the mean to that threshold or zero, unbiasedly.

    A weight w survives with probability w / threshold, exact to 2^-64. Below 2^-65 it
    never survives; what is lost is at most 2^-65 epsilon of the total weight.

    Args:
        key: a typed key.
        log_weights: [N]; weights of zero stay zero.
        exempt: particles whose weights do not change, [N].
        epsilon: the threshold, as a multiple of the mean weight.
    """
    threshold = log_mean_exp(log_weights) + jnp.log(epsilon)
    survives = log_uniform(key, log_weights.shape) < log_weights - threshold
    new_weights = jnp.where(survives, threshold, -jnp.inf)
    below_threshold = (log_weights < threshold) & ~exempt
    return jnp.where(below_threshold, new_weights, log_weights)


@picklable
def pruning(
    epsilon: float = 0.1,
    *,
    resampling: Resampling = systematic,
    schedule: Schedule | None = None,
    potential: Potential | None = None,
    select: str = "posterior",
    num_islands: int = 1,
) -> Sampler:
    """SMC with Russian roulette for particles of small weight.

    Args:
        epsilon: threshold of the roulette, as a multiple of the mean weight of all N
            particles, in [0, 1]; 0 prunes nothing.
        resampling: the scheme.
        schedule: when to resample, which replaces killed particles; by default
            ess_below(0.5).
        potential: product, telescoping or uniform; by default telescoping("odds").
        select: how one answer is chosen.
        num_islands: groups that resample among themselves.

    Returns:
        A `Sampler` that uses `split(key)` for roulette and resampling.

    Raises:
        ConfigurationError: if epsilon is not in [0, 1], or for another potential.
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ConfigurationError(
            "pruning needs epsilon in [0, 1], a multiple of the mean weight; got "
            f"{epsilon}. Above 1 it could kill all particles."
        )
    potential = telescoping("odds") if potential is None else potential
    sampler = smc(
        resampling=resampling,
        schedule=schedule,
        potential=require_running(potential, "pruning"),
        select=select,
        num_islands=num_islands,
    )

    @with_typed_key
    def ask(key: Key[Array, ""], state: SMCState) -> tuple[SMCState, Int[Array, "N"]]:
        key_roulette, key_ask = jax.random.split(key)
        log_weights = russian_roulette(
            key_roulette, state.log_weights, state.finished, epsilon
        )
        has_weight = log_weights > -jnp.inf
        gain = jnp.where(has_weight, log_weights - state.log_weights, 0.0)
        log_base = jnp.where(has_weight, state.log_base + gain, -jnp.inf)
        pruned = state._replace(log_weights=log_weights, log_base=log_base)
        return sampler.ask(key_ask, pruned)

    return sampler._replace(ask=ask, prunes=True)
