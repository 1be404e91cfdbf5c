"""Conjugate posteriors of a mean reward, and draws from them for Thompson sampling.

Gaussian rewards with a normal-inverse-chi-squared prior,

    sigma^2 ~ nu tau^2 / chi^2_nu,    mu | sigma^2 ~ N(m, sigma^2 / kappa),

or rewards in [0, 1] as fractions of a success, with a Beta(a, b) prior.

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
    """Sums over the rewards seen at each place: their number, total and squares."""

    number: Int[Array, "*places"]
    total: Float[Array, "*places"]
    squares: Float[Array, "*places"]


Posterior = Callable[[Key[Array, ""], Observations], Array]
"""`(key, observations of any shape) -> one draw of the mean reward for each place`."""


def no_observations(shape: tuple[int, ...]) -> Observations:
    """Nothing seen anywhere."""
    zeros = jnp.zeros(shape, weight_dtype())
    return Observations(jnp.zeros(shape, jnp.int32), zeros, zeros)


def observe(
    seen: Observations,
    places: Int[Array, "W"],
    rewards: Float[Array, "W"],
    active: Bool[Array, "W"],
) -> Observations:
    """One reward more at each of those places that are active; places may repeat."""
    where = jnp.where(active, places, seen.number.shape[0])
    return Observations(
        seen.number.at[where].add(1, mode="drop"),
        seen.total.at[where].add(rewards, mode="drop"),
        seen.squares.at[where].add(rewards**2, mode="drop"),
    )


def gaussian(
    mean: float = 0.0, kappa: float = 1.0, nu: float = 1.0, tau_squared: float = 0.1
) -> Posterior:
    """Draws of mu under its posterior, a t-distribution with nu + n degrees of freedom.

    Args:
        mean: m, the prior mean.
        kappa: how many observations the prior mean is worth.
        nu: how many observations the prior variance is worth.
        tau_squared: the prior variance.

    Raises:
        ConfigurationError: if kappa, nu or tau_squared is not positive.
    """
    if min(kappa, nu, tau_squared) <= 0:
        raise ConfigurationError(
            "The Gaussian prior needs positive kappa, nu and tau_squared; got "
            f"kappa={kappa}, nu={nu}, tau_squared={tau_squared}."
        )

    def draw(key: Key[Array, ""], seen: Observations) -> Array:
        n, average = seen.number, seen.total / jnp.maximum(seen.number, 1)
        # Rounding could make the sum of squares about the average negative.
        spread = jnp.maximum(seen.squares - n * average**2, 0.0)
        shift = n * kappa * (mean - average) ** 2 / (kappa + n)
        freedom = nu + n
        variance = (nu * tau_squared + spread + shift) / freedom
        centre = (kappa * mean + seen.total) / (kappa + n)
        radius, angle = jax.random.uniform(key, (2, *n.shape))
        # The logarithm of what lies in (0, 1]: no draw is infinite.
        radius = jnp.sqrt(freedom * jnp.expm1(-2.0 / freedom * jnp.log1p(-radius)))
        student_t = radius * jnp.cos(2.0 * jnp.pi * angle)
        return centre + jnp.sqrt(variance / (kappa + n)) * student_t

    return draw


def beta(a: float = 0.5, b: float = 0.5) -> Posterior:
    """Draws under Beta(a + sum of rewards, b + sum of their complements).

    Args:
        a, b: of the prior, Jeffreys' by default.

    Raises:
        ConfigurationError: if one of them is not positive.
    """
    if min(a, b) <= 0:
        raise ConfigurationError(
            f"The beta prior needs positive a and b; got a={a}, b={b}."
        )

    def draw(key: Key[Array, ""], seen: Observations) -> Array:
        failures = jnp.maximum(seen.number - seen.total, 0.0)
        return jax.random.beta(key, a + seen.total, b + failures)

    return draw


POSTERIORS: dict[str, Callable[[], Posterior]] = {"gaussian": gaussian, "beta": beta}


def posterior_named(posterior: str | Posterior) -> Posterior:
    """The posterior of that name with its default prior, or the function given.

    Raises:
        UnknownNameError: for a name that is not in `POSTERIORS`.
    """
    if callable(posterior):
        return posterior
    if posterior not in POSTERIORS:
        raise UnknownNameError("posterior", posterior, POSTERIORS)
    return POSTERIORS[posterior]()
