"""The effective sample size of importance weights (Kong, Liu and Wong 1994)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from tsi.weights import sanitise


def ess(log_weights: Float[Array, "*batch N"]) -> Float[Array, "*batch"]:
    """Effective sample size (sum w)^2 / sum w^2, in [1, N]; 0 if all weights are zero.

    Source: Kong, Liu and Wong 1994.
    """
    log_weights = sanitise(log_weights)
    largest = jnp.max(log_weights, axis=-1)
    shift = jnp.where(jnp.isfinite(largest), largest, 0.0)
    # Scaled to a largest weight of one, so that N equal weights give exactly N.
    weights = jnp.exp(log_weights - shift[..., None])
    squares = jnp.sum(weights**2, axis=-1)
    dead = squares == 0.0
    size = jnp.sum(weights, axis=-1) ** 2 / jnp.where(dead, 1.0, squares)
    return jnp.where(dead, 0.0, size)
