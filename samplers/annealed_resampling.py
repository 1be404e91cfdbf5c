"""SMC that resamples with scores raised to a power that grows to one.

Early scores are unreliable, and resampling with the full scores leaves copies of a few
particles. Here the ancestors before step t + 1 are drawn in proportion to

    v = w f(lp_t)^(lambda_t - 1),    0 <= lambda_t <= 1,

which under the telescoping potential is the weight for a target whose score is raised
to lambda_t. Offspring have the weights mean(v) w / v, which contain the part of the
score that annealing omitted, so the target is p(x) f(lp_T) for all lambdas. The lambdas
are fixed in advance, or each is the largest for which the weights v keep an effective
sample size,

    lambda_t = max { lambda : ESS(w f^(lambda - 1)) >= fraction N },

found by bisection. If no lambda keeps this size, lambda = 0, the weights without any
score.

References:
    [1] Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo samplers (sequences of
        annealed targets, as in `tempered_smc`). Differs: the target does not change,
        and only the weights with which ancestors are drawn are annealed.
    [2] Jasra, Stephens, Doucet and Tsagaris 2011, Inference for Lévy-driven stochastic
        volatility models via adaptive sequential Monte Carlo (bisection on the ESS).
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.annealing import anneal, largest_exponent
from tsi.samplers.parts.potentials import Transform, telescoping
from tsi.samplers.parts.reproduction import Group, by_priority
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import Schedule, every_step
from tsi.samplers.smc import smc
from tsi.weights import centre


def _make_exponent(
    schedule: Sequence[float] | Callable[[Array], Array],
) -> Callable[[Array], Array]:
    if callable(schedule):
        return schedule
    exponents = tuple(float(exponent) for exponent in schedule)
    if not exponents or not all(0.0 <= exponent <= 1.0 for exponent in exponents):
        raise ConfigurationError(
            "annealed_resampling takes a schedule of one or more exponents in [0, 1]; "
            f"got {exponents}. The last exponent is used for all later steps."
        )

    def exponent(t: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(exponents)[jnp.minimum(t, len(exponents)) - 1]

    return exponent


@picklable
def annealed_resampling(
    schedule: str | Sequence[float] | Callable[[Array], Array] = "ess",
    *,
    ess_fraction: float = 0.5,
    weights: str | Transform = "odds",
    when: Schedule = every_step,
    resampling: Resampling = systematic,
    select: str = "posterior",
    num_islands: int = 1,
) -> Sampler:
    """SMC with annealed resampling weights and an unchanged target.

    Args:
        schedule: "ess"; or lambda after 1, 2, ... steps, the last one for all later
            steps; or a function of the number of steps so far.
        ess_fraction: the effective sample size that "ess" keeps, as a fraction of N.
        weights: "odds", "reward", "softmax", or a function of the log potential.
        when: when to resample; by default at every step, since "ess" keeps most
            particles.
        resampling: the scheme.
        select: how one answer is chosen.
        num_islands: groups that resample, and choose lambda, independently.

    Raises:
        ConfigurationError: for a fraction or an exponent outside [0, 1].
        UnknownNameError: for an unknown schedule or unknown weights.
    """
    if isinstance(schedule, str):
        if schedule != "ess":
            raise UnknownNameError("tempering schedule", schedule, ("ess",))
        fixed_exponent = None
    else:
        fixed_exponent = _make_exponent(schedule)
    if not 0.0 <= ess_fraction <= 1.0:
        raise ConfigurationError(
            f"annealed_resampling needs ess_fraction in [0, 1]; got {ess_fraction}."
        )

    def log_priority(group: Group) -> Float[Array, "n"]:
        log_w, log_scores, _, t = group
        # A factor common to all scores cancels in the weights, but its rounding would
        # not.
        log_scores, _ = centre(log_scores, where=log_w > -jnp.inf)
        if fixed_exponent is None:
            exponent = largest_exponent(log_w, log_scores, ess_fraction)
        else:
            exponent = fixed_exponent(t)
        return anneal(log_w, log_scores, exponent)

    return smc(
        resampling=resampling,
        schedule=when,
        potential=telescoping(weights),
        select=select,
        num_islands=num_islands,
        reproduction=by_priority(resampling, log_priority),
    )
