"""The entropic particle filter: resample by annealed weights while they are collapsing.

Early scores of a process reward model are overconfident, and resampling by them leaves
copies of one particle. While ESS / N < 0.5 in the first half of the run, ancestors are
drawn by w^(1/T) with

    T = max(1, (N / ESS) (1 - t / T_max)).

"corrected", the default: an offspring of i carries mean(v) w_i / v_i, v = w^(1/T), so
the target is that of the particle filter, p(x) prod_t f(r_t), whatever the annealing.
"normalised_entropy" takes the exponent 1 / T = H + (1 - H) t / T_max, with H the
normalised entropy of the weights, from the same source, also corrected. "released":
w are the odds of the last reward alone, clipped to [1e-7, 1 - 1e-7], those of finished
particles in every later step again, and what annealing leaves out is forgotten; no
target defines what is sampled.

References:
    [1] Giannone et al. 2025, arXiv 2510.05825 (entropic annealing), and its code,
        its_hub 1.2.0, core/algorithms/particle_gibbs.py. "released" differs in the end:
        that code resamples once more after the last step, and here the final particles
        carry the weights by which it would.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import Transform, latest, product
from tsi.samplers.parts.published import clipped_odds
from tsi.samplers.parts.reproduction import Group, at_mean_weight, by_priority
from tsi.samplers.parts.resampling import systematic
from tsi.samplers.parts.schedules import every_step
from tsi.samplers.smc import smc
from tsi.weights import ess, normalise

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
    """The particle filter with annealed, systematic resampling.

    Args:
        weights: "odds", the default, "reward", "softmax", or a function of the log
            potential; "released" has odds.
        variant: "corrected", "released" or "normalised_entropy".
        max_steps: T_max, over which annealing fades.
        ess_fraction: anneal while ESS / N is below it.
        active_fraction: anneal while t / T_max is below it.
        select: how one answer is chosen; by default "posterior", and "argmax" of the
            last reward if released.
        num_islands: independent filters of N / num_islands particles.

    Raises:
        ConfigurationError: if max_steps is less than one, a fraction not in [0, 1], or
            "released" is given weights other than odds.
        UnknownNameError: for an unknown variant or name of weights.
    """
    if variant not in VARIANTS:
        raise UnknownNameError("entropic particle filter variant", variant, VARIANTS)
    released = variant == "released"
    if select is None:
        select = "argmax" if released else "posterior"
    weights = "odds" if weights is None else weights
    if released and weights != "odds":
        raise ConfigurationError(
            'entropic_particle_filter(variant="released") weighs by odds, as its code '
            'does. Leave weights out, or use variant="corrected".'
        )
    if max_steps < 1:
        raise ConfigurationError(
            f"Annealing fades over max_steps, and {max_steps} is less than one step."
        )
    for name, fraction in (
        ("ess_fraction", ess_fraction),
        ("active_fraction", active_fraction),
    ):
        if not 0.0 <= fraction <= 1.0:
            raise ConfigurationError(f"{name} is {fraction}, not a number in [0, 1].")

    def anneal(group: Group) -> Float[Array, "n"]:
        log_weights = group.log_weights
        num_particles = log_weights.shape[0]
        progress = group.t / max_steps
        size = ess(log_weights)
        active = (size < ess_fraction * num_particles) & (progress < active_fraction)
        if variant == "normalised_entropy":
            log_normalised = normalise(log_weights)
            summands = jnp.exp(log_normalised) * log_normalised
            entropy = -jnp.sum(jnp.where(log_normalised > -jnp.inf, summands, 0.0))
            entropy = entropy / jnp.log(float(max(num_particles, 2)))
            exponent = entropy + (1.0 - entropy) * progress
            # One particle with all the weight has entropy zero, and 0 * -inf is NaN.
            exponent = jnp.clip(exponent, 1e-3, 1.0)
        else:
            heat = num_particles / jnp.maximum(size, 1.0) * (1.0 - progress)
            exponent = 1.0 / jnp.maximum(1.0, heat)
        return log_weights * jnp.where(active, exponent, 1.0)

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
