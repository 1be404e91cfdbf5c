"""The entropic particle filter: anneal the resampling weights early in the run.

Early scores of a process reward model are overconfident, and resampling with them
leaves copies of one particle. In the first half of the run, while ESS / N < 0.5,
ancestors are drawn in proportion to w^(1/T) with

    T = max(1, (N / ESS) (1 - t / T_max)).

Variants:

"corrected", the default: an offspring of i has weight mean(v) w_i / v_i with
v = w^(1/T), so the target is that of the particle filter, p(x) prod_t f(r_t), for any
annealing.

"normalised_entropy": also corrected, with the exponent 1 / T = H + (1 - H) t / T_max of
the same source, where H is the normalised entropy of the weights.

"released": w is the odds of the last reward only, clipped to [1e-7, 1 - 1e-7]. Finished
particles are weighted again by their last reward at every later step, and the weight
not used by the annealed draw is discarded. This variant has no target.

References:
    [1] Giannone et al. 2025, arXiv 2510.05825 (entropic annealing), and its code,
        its_hub 1.2.0, core/algorithms/particle_gibbs.py. "released" differs at the
        end: the code resamples once more after the last step; here the final particles
        have the weights with which it would resample.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.ess import ess
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import Transform, latest, product
from tsi.samplers.parts.published import clipped_odds
from tsi.samplers.parts.reproduction import Group, at_mean_weight, by_priority
from tsi.samplers.parts.resampling import systematic
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc
from tsi.weights import normalise

VARIANTS = ("corrected", "released", "normalised_entropy")

EPSILON = 1e-7
"""Rewards of the released variant are clipped to [EPSILON, 1 - EPSILON]."""


@picklable
def entropic_particle_filter(
    weights: str | Transform | None = None,
    *,
    variant: str = "corrected",
    max_steps: int = 40,
    ess_fraction: float = 0.5,
    active_fraction: float = 0.5,
    select: str | None = None,
    num_islands: int = 1,
) -> Sampler:
    """The particle filter with annealed systematic resampling.

    Args:
        weights: "odds", the default, "reward", "softmax", or a function of the log
            potential; "released" uses odds.
        variant: "corrected", "released" or "normalised_entropy".
        max_steps: T_max, the number of steps over which annealing fades out.
        ess_fraction: anneal while ESS / N is below this fraction.
        active_fraction: anneal while t / T_max is below this fraction.
        select: how one answer is chosen; by default "posterior"; for "released"
            "argmax" of the last reward.
        num_islands: independent filters of N / num_islands particles.

    Raises:
        ConfigurationError: if max_steps is less than one, a fraction is not in [0, 1],
            or "released" is given weights other than odds.
        UnknownNameError: for an unknown variant or unknown weights.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("entropic particle filter variant", variant, VARIANTS)
    released = variant == "released"
    if select is None:
        select = "argmax" if released else "posterior"
    weights = "odds" if weights is None else weights
    if released and weights != "odds":
        raise ConfigurationError(
            'entropic_particle_filter(variant="released") uses odds as weights, as '
            'its code does. Leave weights out, or use variant="corrected".'
        )
    if max_steps < 1:
        raise ConfigurationError(
            "Annealing fades out over max_steps, which must be at least 1; got "
            f"{max_steps}."
        )
    for name, fraction in (
        ("ess_fraction", ess_fraction),
        ("active_fraction", active_fraction),
    ):
        if not 0.0 <= fraction <= 1.0:
            raise ConfigurationError(f"{name} must be in [0, 1]; got {fraction}.")

    def anneal(group: Group) -> Float[Array, "n"]:
        log_weights = group.log_weights
        num_particles = log_weights.shape[0]
        progress = group.t / max_steps
        size = ess(log_weights)
        anneals = (size < ess_fraction * num_particles) & (progress < active_fraction)
        if variant == "normalised_entropy":
            log_normalised = normalise(log_weights)
            summands = jnp.exp(log_normalised) * log_normalised
            entropy = -jnp.sum(jnp.where(log_normalised > -jnp.inf, summands, 0.0))
            entropy = entropy / jnp.log(float(max(num_particles, 2)))
            exponent = entropy + (1.0 - entropy) * progress
            # If one particle has all the weight, the entropy is zero, and 0 * -inf is
            # NaN.
            exponent = jnp.clip(exponent, 1e-3, 1.0)
        else:
            temperature = num_particles / jnp.maximum(size, 1.0) * (1.0 - progress)
            exponent = 1.0 / jnp.maximum(1.0, temperature)
        return log_weights * jnp.where(anneals, exponent, 1.0)

    def choose(key: Key[Array, ""], group: Group) -> Int[Array, "n"]:
        return systematic(key, anneal(group), group.log_weights.shape[0])

    return smc(
        schedule=every_step,
        potential=latest(clipped_odds(EPSILON)) if released else product(weights),
        select=select,
        num_islands=num_islands,
        reproduction=at_mean_weight(choose)
        if released
        else by_priority(systematic, anneal),
    )
