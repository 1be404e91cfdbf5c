"""Optimal resampling: keep K of N weighted particles, none of them twice.

With c such that sum_i min(1, c w_i) = K, particle i is kept with probability
min(1, c w_i): every particle of weight at least 1/c for sure, with its weight, and the
others by systematic sampling, with weight 1/c. So

    kept weight  max(w_i, 1/c)  with probability  min(1, c w_i),  zero otherwise,

which has expectation w_i, and the total weight stays as it is. Among unbiased ways to
keep at most K particles it minimises sum_i E (new w_i - w_i)^2.

Sampling is done on integers that are units of 2^-30 of a place. Ends of intervals are
sums modulo 2^32, so that no sum is too large to be exact, and a particle is kept if a
whole number of places lies in its interval: at most one does.

References:
    [1] Fearnhead and Clifford 2003, On-line inference for hidden Markov models via
        particle filters, JRSS B 65, 887-899.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from tsi.weights import normalise, sanitise

PLACE = 30
"""Bits of the units of one place."""


def inclusion_probabilities(
    log_weights: Float[Array, "N"], num_kept: int
) -> Float[Array, "N"]:
    """min(1, c w_i), which sum to K; 1 for every positive weight if K or fewer are."""
    num_kept = min(num_kept, log_weights.shape[0])
    weights = jnp.where(
        sanitise(log_weights) > -jnp.inf, jnp.exp(normalise(log_weights)), 0.0
    )
    ordered = jnp.sort(weights, descending=True)
    # With the a largest kept for sure, c = (K - a) / (sum of the others); the first a
    # for which the next one is not sure as well is the right one.
    tails = jnp.cumsum(ordered[::-1])[::-1][:num_kept]
    places = num_kept - jnp.arange(num_kept)
    right = places * ordered[:num_kept] <= tails
    first = jnp.argmax(right)
    scale = places[first] / tails[first]
    too_few = jnp.sum(weights > 0.0) <= num_kept
    return jnp.where(too_few, 1.0 * (weights > 0.0), jnp.minimum(scale * weights, 1.0))


def optimal_resampling(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_kept: int
) -> tuple[Bool[Array, "N"], Float[Array, "N"]]:
    """Choose at most K particles.

    Args:
        key: a typed key.
        log_weights: unnormalised log weights, [N].
        num_kept: K, static, at least one.

    Returns:
        Which particles are kept, [N]: K of them, or all that have weight if those are
        fewer. And their new log weights, [N], -inf for those not kept.
    """
    probabilities = inclusion_probabilities(log_weights, num_kept)
    units = jnp.round(probabilities * 2.0**PLACE).astype(jnp.uint32)
    start = jax.random.bits(key, (), jnp.uint32)
    ends = start + jnp.cumsum(units, dtype=jnp.uint32)
    kept = (ends >> PLACE) != ((ends - units) >> PLACE)
    # Rounding makes the units' sum miss K places by a few, which may let in one more.
    kept = kept & (jnp.cumsum(kept) <= num_kept)
    new = sanitise(log_weights) - jnp.log(probabilities)
    return kept, jnp.where(kept, new, -jnp.inf)
