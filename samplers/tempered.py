"""Tempered SMC: resample by scores raised to a power that grows to one.

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
        annealed targets). Differs: annealing acts on what is resampled by alone.
    [2] Jasra, Stephens, Doucet and Tsagaris 2011, Inference for Lévy-driven stochastic
        volatility models via adaptive sequential Monte Carlo (bisection on the ESS).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import Transform, telescoping
from tsi.samplers.parts.reproduction import Group, by_priority
from tsi.samplers.parts.resampling import Resampling, systematic
from tsi.samplers.parts.schedules import Schedule, every_step
from tsi.samplers.smc import smc
from tsi.weights import centre, ess, weight_dtype

NUM_BISECTIONS = 20


def tempered_weights(
    log_weights: Float[Array, "n"],
    log_scores: Float[Array, "n"],
    exponent: Float[Array, ""] | float,
) -> Float[Array, "n"]:
    """log w + (lambda - 1) log f; dead particles stay dead."""
    alive = log_weights > -jnp.inf
    rest = jnp.where(alive, log_scores, 0.0)
    return jnp.where(alive, log_weights + (exponent - 1.0) * rest, -jnp.inf)


def largest_exponent(
    log_weights: Float[Array, "n"], log_scores: Float[Array, "n"], fraction: float
) -> Float[Array, ""]:
    """The largest lambda in [0, 1] whose tempered weights keep ESS >= fraction n.

    Where the ESS is not monotone in lambda it is one of the crossings.
    """
    wanted = fraction * log_weights.shape[0]

    def enough(exponent: Float[Array, ""]) -> Array:
        return ess(tempered_weights(log_weights, log_scores, exponent)) >= wanted

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        good = enough(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    one = jnp.ones((), weight_dtype())
    low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (jnp.zeros_like(one), one))
    return jnp.where(enough(one), one, low)


def _given_exponent(
    schedule: Sequence[float] | Callable[[Array], Array],
) -> Callable[[Array], Array]:
    if callable(schedule):
        return schedule
    exponents = tuple(float(exponent) for exponent in schedule)
    if not exponents or not all(0.0 <= exponent <= 1.0 for exponent in exponents):
        raise ConfigurationError(
            "tempered_smc takes a schedule of one or more exponents in [0, 1], and it "
            f"is {exponents}. The last of them holds for all later steps."
        )

    def exponent(t: Int[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(exponents)[jnp.minimum(t, len(exponents)) - 1]

    return exponent


@picklable
def tempered_smc(
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
            "tempered_smc keeps a fraction of the particles in [0, 1] in effect, and "
            f"ess_fraction is {ess_fraction}."
        )

    def log_priority(group: Group) -> Float[Array, "n"]:
        log_w, log_scores, _, t = group
        # A power of the scale of all scores is common to all, and rounding is not.
        log_scores, _ = centre(log_scores, among=log_w > -jnp.inf)
        if given is None:
            exponent = largest_exponent(log_w, log_scores, ess_fraction)
        else:
            exponent = given(t)
        return tempered_weights(log_w, log_scores, exponent)

    return smc(
        resampling=resampling,
        schedule=when,
        potential=telescoping(weights),
        select=select,
        num_islands=num_islands,
        reproduction=by_priority(resampling, log_priority),
    )
