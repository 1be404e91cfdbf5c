"""SMC that resamples by scores raised to a power that grows to one.

Early scores are unreliable, and resampling by them in full leaves copies of a few
particles. Here the ancestors before step t + 1 are drawn in proportion to

    v = w f(lp_t)^(lambda_t - 1),    0 <= lambda_t <= 1,

which under the telescoping potential is the weight for a target whose score is raised
to lambda_t. Offspring carry mean(v) w / v, what annealing left out, so the target is
p(x) f(lp_T) whatever the lambdas. They are fixed in advance, or the largest for which
the weights v keep an effective sample size,

    lambda_t = max { lambda : ESS(w f^(lambda - 1)) >= fraction N },

which bisection finds (the weights without any score, lambda = 0, if none does).

References:
    [1] Del Moral, Doucet and Jasra 2006, Sequential Monte Carlo samplers (sequences of
        annealed targets, which `tempered_smc` has). Differs: the target stays, and only
        the weights that ancestors are drawn by are annealed.
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


def _given_exponent(
    schedule: Sequence[float] | Callable[[Array], Array],
) -> Callable[[Array], Array]:
    if callable(schedule):
        return schedule
    exponents = tuple(float(exponent) for exponent in schedule)
    if not exponents or not all(0.0 <= exponent <= 1.0 for exponent in exponents):
        raise ConfigurationError(
            "annealed_resampling takes a schedule of one or more exponents in [0, 1], "
            f"and it is {exponents}. The last of them holds for all later steps."
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
    """SMC that anneals what it resamples by and keeps its target.

    Args:
        schedule: "ess"; or lambda after 1, 2, ... steps, the last one for all later
            steps; or a function of the number of steps so far.
        ess_fraction: of the particles, that "ess" keeps in effect.
        weights: "odds", "reward", "softmax", or a function of the log potential.
        when: when to resample; with "ess" resampling is gentle enough for every step.
        resampling: the scheme.
        select: how one answer is chosen.
        num_islands: groups that resample, and choose lambda, by themselves.

    Raises:
        ConfigurationError: for a fraction or an exponent outside [0, 1].
        UnknownNameError: for an unknown name of a schedule or of weights.
    """
    if isinstance(schedule, str):
        if schedule != "ess":
            raise UnknownNameError("tempering schedule", schedule, ("ess",))
        given = None
    else:
        given = _given_exponent(schedule)
    if not 0.0 <= ess_fraction <= 1.0:
        raise ConfigurationError(
            "annealed_resampling keeps a fraction of the particles in [0, 1] in "
            f"effect, and ess_fraction is {ess_fraction}."
        )

    def log_priority(group: Group) -> Float[Array, "n"]:
        log_w, log_scores, _, t = group
        # A power of the scale of all scores is common to all, and rounding is not.
        log_scores, _ = centre(log_scores, where=log_w > -jnp.inf)
        if given is None:
            exponent = largest_exponent(log_w, log_scores, ess_fraction)
        else:
            exponent = given(t)
        return anneal(log_w, log_scores, exponent)

    return smc(
        resampling=resampling,
        schedule=when,
        potential=telescoping(weights),
        select=select,
        num_islands=num_islands,
        reproduction=by_priority(resampling, log_priority),
    )
