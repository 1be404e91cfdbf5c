"""Conjugate posteriors of a mean reward, and draws from them for Thompson sampling.

Gaussian rewards with a normal-inverse-chi-squared prior,

    sigma^2 ~ nu tau^2 / chi^2_nu,    mu | sigma^2 ~ N(m, sigma^2 / kappa),

or rewards in [0, 1], which count as fractional successes, with a Beta(a, b) prior.

References:
    [1] Murphy 2023, Probabilistic Machine Learning: Advanced Topics, Section 3.4.3.3.
    [2] Inoue et al. 2025, arXiv 2503.04412; constants of its code, SakanaAI/treequest.
    [3] Bailey 1994, Polar generation of random variates with the t-distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.weights import weight_dtype


class Observations(NamedTuple):
    """Statistics of the rewards observed at each node: number, sum, sum of squares."""

    number: Int[Array, "*places"]
    total: Float[Array, "*places"]
    squares: Float[Array, "*places"]


Posterior = Callable[[Key[Array, ""], Observations], Array]
"""`(key, observations of any shape) -> one draw of the mean reward for each place`."""


def empty_observations(shape: tuple[int, ...]) -> Observations:
    """No rewards at any node."""
    zeros = jnp.zeros(shape, weight_dtype())
    return Observations(jnp.zeros(shape, jnp.int32), zeros, zeros)


def observe(
    observations: Observations,
    places: Int[Array, "W"],
    rewards: Float[Array, "W"],
    active: Bool[Array, "W"],
) -> Observations:
    """Add a reward at each active node; nodes may repeat."""
    targets = jnp.where(active, places, observations.number.shape[0])
    return Observations(
        observations.number.at[targets].add(1, mode="drop"),
        observations.total.at[targets].add(rewards, mode="drop"),
        observations.squares.at[targets].add(rewards**2, mode="drop"),
    )


def gaussian(
    mean: float = 0.0, kappa: float = 1.0, nu: float = 1.0, tau_squared: float = 0.1
) -> Posterior:
    """Draws of mu under its posterior, a t-distribution with nu + n degrees of freedom.

    Args:
        mean: m, the prior mean.
        kappa: weight of the prior mean, as a number of observations.
        nu: weight of the prior variance, as a number of observations.
        tau_squared: the prior variance.

    Raises:
        ConfigurationError: if kappa, nu or tau_squared is not positive.
    """
    if min(kappa, nu, tau_squared) <= 0:
        raise ConfigurationError(
            "The Gaussian prior needs positive kappa, nu and tau_squared; got "
            f"kappa={kappa}, nu={nu}, tau_squared={tau_squared}."
        )

    def draw(key: Key[Array, ""], observations: Observations) -> Array:
        n, average = (
            observations.number,
            observations.total / jnp.maximum(observations.number, 1),
        )
        # Rounding could make the sum of squares about the average negative.
        squared_deviations = jnp.maximum(observations.squares - n * average**2, 0.0)
        mean_shift = n * kappa * (mean - average) ** 2 / (kappa + n)
        degrees_of_freedom = nu + n
        variance = (
            nu * tau_squared + squared_deviations + mean_shift
        ) / degrees_of_freedom
        centre = (kappa * mean + observations.total) / (kappa + n)
        radius, angle = jax.random.uniform(key, (2, *n.shape))
        # The argument of the logarithm is in (0, 1], so every draw is finite.
        radius = jnp.sqrt(
            degrees_of_freedom
            * jnp.expm1(-2.0 / degrees_of_freedom * jnp.log1p(-radius))
        )
        student_t = radius * jnp.cos(2.0 * jnp.pi * angle)
        return centre + jnp.sqrt(variance / (kappa + n)) * student_t

    return draw


def beta(a: float = 0.5, b: float = 0.5) -> Posterior:
    """Draws of the mean under Beta(a + sum of rewards, b + sum of (1 - reward)).

    Args:
        a, b: parameters of the prior; by default Jeffreys' prior.

    Raises:
        ConfigurationError: if a or b is not positive.
    """
    if min(a, b) <= 0:
        raise ConfigurationError(
            f"The beta prior needs positive a and b; got a={a}, b={b}."
        )

    def draw(key: Key[Array, ""], observations: Observations) -> Array:
        failures = jnp.maximum(observations.number - observations.total, 0.0)
        return jax.random.beta(key, a + observations.total, b + failures)

    return draw


POSTERIORS: dict[str, Callable[[], Posterior]] = {"gaussian": gaussian, "beta": beta}


def get_posterior(posterior: str | Posterior) -> Posterior:
    """Look up a posterior by name, with its default prior; a function is returned.

    Raises:
        UnknownNameError: for a name that is not in `POSTERIORS`.
    """
    if callable(posterior):
        return posterior
    if posterior not in POSTERIORS:
        raise UnknownNameError("posterior", posterior, POSTERIORS)
    return POSTERIORS[posterior]()
