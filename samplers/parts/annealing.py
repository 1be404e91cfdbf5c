"""Weights whose scores are raised to a power lambda, and ladders of such powers.

Ladders are 0 < lambda_1 < ... < lambda_K = 1, given, or the largest at each level that
an effective sample size allows.

References:
    [1] Jasra, Stephens, Doucet and Tsagaris 2011, Inference for Lévy-driven stochastic
        volatility models via adaptive sequential Monte Carlo (bisection on the ESS).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.errors import ConfigurationError
from tsi.weights import centre, ess, weight_dtype

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


def next_exponent(
    present: Float[Array, ""],
    log_scores: Float[Array, "n"],
    log_rest: Float[Array, "n"],
    fraction: float,
) -> Float[Array, ""]:
    """The largest lambda in (present, 1] whose incremental weights keep the ESS.

    The weights are exp((lambda - present) s) times the rest. What has weight zero at
    every lambda does not count: the ESS is a fraction of those alive.

    Args:
        present: lambda of the level before.
        log_scores: s of each particle.
        log_rest: log of p / q, or zero.
        fraction: of the particles alive that the ESS must not fall below.
    """
    alive = (log_scores > -jnp.inf) & (log_rest > -jnp.inf)
    relative, _ = centre(log_scores, where=alive)
    remaining = jnp.where(alive, (1.0 - present) * relative, 0.0)
    log_weights = jnp.where(alive, log_rest + remaining, -jnp.inf)
    share = largest_exponent(log_weights, remaining, fraction * jnp.mean(alive))
    # A step of zero would leave a level, and the chain's target, as they were.
    share = jnp.maximum(share, 0.5**NUM_BISECTIONS)
    return present + share * (1.0 - present)


def even_exponents(num_levels: int) -> tuple[float, ...]:
    """1/K, 2/K, ..., 1.

    Raises:
        ConfigurationError: if K is not positive.
    """
    if num_levels < 1:
        raise ConfigurationError(
            f"A ladder of exponents needs at least one level, and num_levels is "
            f"{num_levels}."
        )
    return tuple((level + 1) / num_levels for level in range(num_levels))


def check_exponents(exponents: Sequence[float]) -> tuple[float, ...]:
    """The exponents, if they rise from above 0 to 1.

    Raises:
        ConfigurationError: otherwise.
    """
    ladder = tuple(float(exponent) for exponent in exponents)
    rises = all(low < high for low, high in zip((0.0, *ladder), ladder, strict=False))
    if not ladder or not rises or ladder[-1] != 1.0:
        raise ConfigurationError(
            "A ladder of exponents must rise from above 0 to exactly 1, the target "
            f"itself; got {ladder}."
        )
    return ladder
