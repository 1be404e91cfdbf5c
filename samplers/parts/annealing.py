"""Weights whose scores are raised to a power lambda, and the lambda that an ESS allows.

References:
    [1] Jasra, Stephens, Doucet and Tsagaris 2011, Inference for Lévy-driven stochastic
        volatility models via adaptive sequential Monte Carlo (bisection on the ESS).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.weights import ess, weight_dtype

NUM_BISECTIONS = 20


def anneal(
    log_weights: Float[Array, "n"],
    log_scores: Float[Array, "n"],
    exponent: Float[Array, ""] | float,
) -> Float[Array, "n"]:
    """log w + (lambda - 1) log f; dead particles stay dead."""
    alive = log_weights > -jnp.inf
    rest = jnp.where(alive, log_scores, 0.0)
    return jnp.where(alive, log_weights + (exponent - 1.0) * rest, -jnp.inf)


def largest_exponent(
    log_weights: Float[Array, "n"],
    log_scores: Float[Array, "n"],
    fraction: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """The largest lambda in [0, 1] whose annealed weights keep ESS >= fraction n.

    Where the ESS is not monotone in lambda it is one of the crossings.
    """
    wanted = fraction * log_weights.shape[0]

    def enough(exponent: Float[Array, ""]) -> Array:
        return ess(anneal(log_weights, log_scores, exponent)) >= wanted

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        good = enough(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    one = jnp.ones((), weight_dtype())
    low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (jnp.zeros_like(one), one))
    return jnp.where(enough(one), one, low)
