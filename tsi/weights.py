"""Arithmetic of importance weights in log space.

Every function accepts zero weights (log weight -inf), even if all are zero, and never
returns NaN. A NaN log weight counts as weight zero, so that a particle of unknown
weight does not survive.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def weight_dtype() -> Any:
    """The type of log weights and log evidence: float32, float64 under x64.

    Weights have this type for every target: bfloat16 is too coarse for weights, and a
    state must not change its type between steps.
    """
    return jnp.promote_types(jnp.float32, jnp.zeros(()).dtype)


def is_invalid(log_weights: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether each log weight is NaN or +inf."""
    return jnp.isnan(log_weights) | (log_weights == jnp.inf)


def sanitise(log_weights: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log weights with NaN and +inf replaced by -inf."""
    return jnp.where(is_invalid(log_weights), -jnp.inf, log_weights)


def centre(
    log_values: Float[Array, "*batch N"], where: Bool[Array, "*batch N"] | bool = True
) -> tuple[Float[Array, "*batch N"], Float[Array, "*batch"]]:
    """Subtract the largest finite value of the last axis; also return that value.

    The difference of two large numbers is exact, and the sum of a large number and a
    weight is not. A constant that all values share is therefore subtracted first, so
    that no decision depends on it.

    Args:
        log_values: [N]; -inf is not changed.
        where: the values among which the largest is taken; it is 0 if there are none.
    """
    is_finite = jnp.isfinite(log_values) & where
    largest = jnp.max(jnp.where(is_finite, log_values, -jnp.inf), axis=-1)
    pivot = jnp.where(jnp.isfinite(largest), largest, 0.0)
    return log_values - pivot[..., None], pivot


class CompensatedSum(NamedTuple):
    """A sum of many logarithms and its rounding error.

    A log evidence of thousands has an ulp of 1e-4, and methods that compare two
    evidences need their difference more precisely.

    Attributes:
        value: the sum, rounded.
        rest: the exact sum minus `value`.

    Source: Neumaier 1974, Rundungsfehleranalyse einiger Verfahren zur Summation
    endlicher Summen.
    """

    value: Float[Array, "*batch"]
    rest: Float[Array, "*batch"]

    def add(self, term: Float[Array, "*batch"]) -> "CompensatedSum":
        """Add a term; a sum of -inf stays -inf."""
        value = self.value + term
        larger = jnp.abs(self.value) >= jnp.abs(term)
        rounding_error = jnp.where(
            larger, (self.value - value) + term, (term - value) + self.value
        )
        rest = jnp.where(jnp.isfinite(value), self.rest + rounding_error, 0.0)
        # This makes `value` the rounded sum, and `rest` smaller than half an ulp.
        whole = value + rest
        return CompensatedSum(
            whole, jnp.where(jnp.isfinite(whole), rest - (whole - value), 0.0)
        )

    def minus(self, other: "CompensatedSum") -> Float[Array, "*batch"]:
        """The difference of two sums."""
        return (self.value - other.value) + (self.rest - other.rest)


def all_dead(log_weights: Float[Array, "*batch N"]) -> Bool[Array, "*batch"]:
    """Whether every weight of the group (the last axis) is zero."""
    return jnp.all(sanitise(log_weights) == -jnp.inf, axis=-1)


def log_sum_exp(log_weights: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """The logarithm of the sum of the weights over the last axis; -inf if all zero."""
    log_weights = sanitise(log_weights)
    largest = jnp.max(log_weights, axis=-1)
    # -inf - (-inf) is NaN, so an all-dead group is shifted by zero.
    shift = jnp.where(jnp.isfinite(largest), largest, 0.0)
    total = jnp.sum(jnp.exp(log_weights - shift[..., None]), axis=-1)
    return jnp.log(total) + shift


def log_mean_exp(log_weights: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """The logarithm of the mean weight over the last axis; -inf if all zero."""
    return log_sum_exp(log_weights) - jnp.log(float(log_weights.shape[-1]))


def normalise(log_weights: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
    """Log weights that sum to one over the last axis.

    A group whose weights are all zero gets equal weights, the recovery rule of this
    package; `all_dead` distinguishes the two cases.
    """
    log_weights = sanitise(log_weights)
    dead = all_dead(log_weights)[..., None]
    total = jnp.where(dead, 0.0, log_sum_exp(log_weights)[..., None])
    uniform = -jnp.log(float(log_weights.shape[-1]))
    return jnp.where(dead, uniform, log_weights - total)


def evidence_increment(
    log_weights: Float[Array, "*batch N"], log_increments: Float[Array, "*batch N"]
) -> Float[Array, "*batch"]:
    """log sum_i W_i exp(log_increments_i), with W the normalised weights.

    The log of the factor by which one step multiplies the evidence estimate. A particle
    of zero weight contributes nothing, even if its increment is infinite or NaN.
    """
    log_normalised = normalise(log_weights)
    alive = log_normalised > -jnp.inf
    return log_sum_exp(jnp.where(alive, log_normalised + log_increments, -jnp.inf))
