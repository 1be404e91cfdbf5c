"""SMC that stops hopeless particles by Russian roulette.

Before each step, an unfinished particle whose weight w is below epsilon, as a multiple
of the mean weight, plays: with probability 1 - w / epsilon it is killed, and otherwise
it goes on with weight epsilon. Its expected weight stays w, so the target does not
change. Nobody takes a killed particle's place until the schedule resamples; its slot is
at rest, which `state.log_weights == -inf` says after `ask`, and a driver may skip such
rows. A finished particle costs no steps, so there is nothing to save on it.

The best particle never plays, as long as epsilon <= 1, so some weight is always left.

References:
    [1] Kahn 1956, Use of different Monte Carlo sampling techniques (Russian roulette).
    [2] Fearnhead and Clifford 2003, On-line inference for hidden Markov models via
        particle filters (rejection of small weights without bias).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError
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
    """Make those below epsilon times the mean epsilon or zero, without bias.

    Args:
        key: a typed key.
        log_weights: [N]; those that are zero stay so.
        exempt: particles that do not play, [N].
        epsilon: the threshold.
    """
    threshold = log_mean_exp(log_weights) + jnp.log(epsilon)
    survival = jnp.exp(log_weights - threshold)
    survives = jax.random.uniform(key, log_weights.shape) < survival
    played = jnp.where(survives, threshold, -jnp.inf)
    plays = (log_weights < threshold) & ~exempt
    return jnp.where(plays, played, log_weights)


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
    """SMC with Russian roulette among particles of small weight.

    Args:
        epsilon: the weight below which a particle plays, with mean one over all N; 0
            prunes nothing.
        resampling: the scheme.
        schedule: when dead particles are replaced; by default ess_below(0.5).
        potential: product, telescoping or uniform; by default telescoping("odds").
        select: how one answer is chosen.
        num_islands: groups that resample among themselves.

    Returns:
        A `Sampler` that draws with `split(key)` for roulette and resampling.

    Raises:
        ConfigurationError: if epsilon is not in [0, 1], or for another potential.
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ConfigurationError(
            "pruning plays for weights below epsilon, a multiple of their mean in "
            f"[0, 1], and epsilon is {epsilon}: beyond 1 all particles might be killed."
        )
    potential = telescoping("odds") if potential is None else potential
    kept_alive = smc(
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
        alive = log_weights > -jnp.inf
        gain = jnp.where(alive, log_weights - state.log_weights, 0.0)
        log_base = jnp.where(alive, state.log_base + gain, -jnp.inf)
        pruned = state._replace(log_weights=log_weights, log_base=log_base)
        return kept_alive.ask(key_ask, pruned)

    return kept_alive._replace(ask=ask, prunes=True)
