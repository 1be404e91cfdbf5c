"""Annealed weights, with scores raised to a power lambda, and ladders of such powers.

A ladder 0 < lambda_1 < ... < lambda_K = 1 is given, or each lambda is the largest that
keeps an effective sample size.

References:
    [1] Jasra, Stephens, Doucet and Tsagaris 2011, Inference for Lévy-driven stochastic
        volatility models via adaptive sequential Monte Carlo (bisection on the ESS).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.errors import ConfigurationError
from tsi.ess import ess
from tsi.weights import centre, weight_dtype

NUM_BISECTIONS = 20


def anneal(
    log_weights: Float[Array, "n"],
    log_scores: Float[Array, "n"],
    exponent: Float[Array, ""] | float,
) -> Float[Array, "n"]:
    """log w + (lambda - 1) log f; dead particles stay dead."""
    has_weight = log_weights > -jnp.inf
    log_factors = jnp.where(has_weight, log_scores, 0.0)
    return jnp.where(has_weight, log_weights + (exponent - 1.0) * log_factors, -jnp.inf)


def largest_exponent(
    log_weights: Float[Array, "n"],
    log_scores: Float[Array, "n"],
    fraction: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """The largest lambda in [0, 1] whose annealed weights keep ESS >= fraction n.

    If the ESS is not monotone in lambda, the result is one of the crossings.
    """
    min_ess = fraction * log_weights.shape[0]

    def keeps_ess(exponent: Float[Array, ""]) -> Array:
        return ess(anneal(log_weights, log_scores, exponent)) >= min_ess

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        is_valid = keeps_ess(middle)
        return jnp.where(is_valid, middle, low), jnp.where(is_valid, high, middle)

    one = jnp.ones((), weight_dtype())
    low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (jnp.zeros_like(one), one))
    return jnp.where(keeps_ess(one), one, low)


def next_exponent(
    present: Float[Array, ""],
    log_scores: Float[Array, "n"],
    log_rest: Float[Array, "n"],
    fraction: float,
) -> Float[Array, ""]:
    """The largest lambda in (present, 1] whose incremental weights keep the ESS.

    The weights are exp((lambda - present) s) p / q. Particles that have weight zero at
    every lambda do not count: the ESS is a fraction of the particles alive.

    Args:
        present: lambda of the previous level.
        log_scores: s of each particle.
        log_rest: log of p / q, or zero.
        fraction: lower bound of the ESS, as a fraction of the particles alive.
    """
    alive = (log_scores > -jnp.inf) & (log_rest > -jnp.inf)
    relative, _ = centre(log_scores, where=alive)
    remaining = jnp.where(alive, (1.0 - present) * relative, 0.0)
    log_weights = jnp.where(alive, log_rest + remaining, -jnp.inf)
    share = largest_exponent(log_weights, remaining, fraction * jnp.mean(alive))
    # A step of zero would not change the target of the level.
    share = jnp.maximum(share, 0.5**NUM_BISECTIONS)
    return present + share * (1.0 - present)


def even_exponents(num_levels: int) -> tuple[float, ...]:
    """1/K, 2/K, ..., 1.

    Raises:
        ConfigurationError: if K is not positive.
    """
    if num_levels < 1:
        raise ConfigurationError(
            f"A ladder of exponents needs num_levels >= 1; got {num_levels}."
        )
    return tuple((level + 1) / num_levels for level in range(num_levels))


def check_exponents(exponents: Sequence[float]) -> tuple[float, ...]:
    """Check that the exponents rise from above 0 to exactly 1, and return them.

    Raises:
        ConfigurationError: if they do not.
    """
    ladder = tuple(float(exponent) for exponent in exponents)
    rises = all(low < high for low, high in zip((0.0, *ladder), ladder, strict=False))
    if not ladder or not rises or ladder[-1] != 1.0:
        raise ConfigurationError(
            "A ladder of exponents must rise from above 0 to exactly 1, the target "
            f"itself; got {ladder}."
        )
    return ladder


class Ladder(NamedTuple):
    """Exponents of the targets, lambda_1, ..., lambda_K.

    Attributes:
        exponents: the exponents, or initial values that the pilot replaces; the last is
            1.
        ess_fraction: effective sample size that the pilot keeps at each level, as a
            fraction of the particles with weight; None for no pilot.
    """

    exponents: tuple[float, ...]
    ess_fraction: float | None

    @property
    def runs(self) -> int:
        """Number of runs of the sequence: the main run, and a pilot if needed."""
        return 1 if self.ess_fraction is None else 2


def make_ladder(
    method: str,
    num_levels: int,
    exponents: Sequence[float] | str | None,
    ess_fraction: float,
) -> Ladder:
    """Make the ladder from the arguments of a constructor.

    Args:
        method: name of the method, for errors.
        num_levels: K, unless the exponents are given as a sequence.
        exponents: None for k / K, a sequence that rises to 1, or "ess" for a pilot.
        ess_fraction: effective sample size that the pilot keeps, as a fraction.

    Raises:
        ConfigurationError: for a ladder that does not rise to 1, no levels, or a
            fraction outside (0, 1).
    """
    if not 0.0 < ess_fraction < 1.0:
        raise ConfigurationError(
            f"The pilot of {method} needs ess_fraction in (0, 1); got {ess_fraction}."
        )
    if exponents is None:
        return Ladder(even_exponents(num_levels), None)
    if not isinstance(exponents, str):
        return Ladder(check_exponents(exponents), None)
    if exponents != "ess":
        raise ConfigurationError(
            f'{method} takes exponents=None for k / K, "ess" for a pilot run that '
            f"chooses them, or a sequence that rises to 1; got {exponents!r}."
        )
    return Ladder(even_exponents(num_levels), ess_fraction)
