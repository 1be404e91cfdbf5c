"""Optimal resampling: keep K distinct particles of N weighted ones.

With c such that sum_i min(1, c w_i) = K, particle i is kept with probability
min(1, c w_i). Every particle of weight at least 1/c is kept with probability one and
keeps its weight; the others are kept by systematic sampling, with weight 1/c. So

    kept weight  max(w_i, 1/c)  with probability  min(1, c w_i),  zero otherwise,

which has expectation w_i, and the total weight does not change. Among the unbiased
schemes that keep at most K particles it minimises sum_i E (new w_i - w_i)^2.

The threshold is found in log space, because the particles kept with probability one may
outweigh the others by any factor. The weights of the others are counted in units of
2^-30 of their own total, as in `samplers/parts/resampling.py`.

References:
    [1] Fearnhead and Clifford 2003, On-line inference for hidden Markov models via
        particle filters, JRSS B 65, 887-899.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.samplers.parts.resampling import (
    count_units,
    cumulate,
    find_interval,
    grid,
)
from tsi.scaled_bits import scale_bits
from tsi.step_keys import with_typed_key
from tsi.weights import sanitise


class Threshold(NamedTuple):
    """Which particles are kept with probability one, and the scale c of the others.

    Attributes:
        certain: particles that are kept with probability one, [N].
        num_certain: their number, less than K.
        log_scale: log c.
    """

    certain: Bool[Array, "N"]
    num_certain: Int[Array, ""]
    log_scale: Float[Array, ""]


def threshold(log_weights: Float[Array, "N"], num_kept: int) -> Threshold:
    """Find the particles kept with probability one, for K kept of N, K less than N.

    If the a largest are kept, c = (K - a) / (sum of the others). The result is the
    first a for which c times the next weight is at most one.
    """
    order = jnp.argsort(log_weights, descending=True, stable=True)
    ordered = log_weights[order]
    log_tails = jax.lax.cumlogsumexp(ordered, reverse=True)[:num_kept]
    log_places = jnp.log(num_kept - jnp.arange(num_kept, dtype=ordered.dtype))
    num_certain = jnp.argmax(log_places + ordered[:num_kept] <= log_tails)
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    log_scale = log_places[num_certain] - log_tails[num_certain]
    return Threshold(ranks < num_certain, num_certain, log_scale)


def inclusion_probabilities(
    log_weights: Float[Array, "N"], num_kept: int
) -> Float[Array, "N"]:
    """min(1, c w_i), which sum to K; all 1 if at most K weights are positive."""
    log_weights = sanitise(log_weights)
    alive = log_weights > -jnp.inf
    num_kept = min(num_kept, log_weights.shape[0])
    is_certain, _, log_scale = threshold(log_weights, num_kept)
    probabilities = jnp.where(is_certain, 1.0, jnp.exp(log_weights + log_scale))
    all_fit = jnp.sum(alive) <= num_kept
    return jnp.where(all_fit, 1.0 * alive, jnp.minimum(probabilities, 1.0))


@with_typed_key
def optimal_resampling(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_kept: int
) -> tuple[Bool[Array, "N"], Float[Array, "N"]]:
    """Choose at most K particles.

    Args:
        key: a typed key.
        log_weights: unnormalised log weights, [N].
        num_kept: K, static, at least one.

    Returns:
        Which particles are kept, [N]: K of them, or all with weight if those are fewer;
        and the new log weights, [N], -inf for particles that are not kept.
    """
    log_weights = sanitise(log_weights)
    alive = log_weights > -jnp.inf
    num_kept = min(num_kept, log_weights.shape[0])
    is_certain, num_certain, log_scale = threshold(log_weights, num_kept)

    others = jnp.where(is_certain, -jnp.inf, log_weights)
    cdf = cumulate(count_units(others))
    places_left = num_kept - num_certain
    offset = scale_bits(jax.random.bits(key, (), jnp.uint32), cdf[-1])
    positions = grid(cdf[-1], jnp.broadcast_to(offset, num_kept), places_left)
    indices = find_interval(cdf, positions)
    indices = jnp.where(jnp.arange(num_kept) < places_left, indices, alive.shape[0])
    is_chosen = jnp.zeros_like(alive).at[indices].set(True, mode="drop")

    all_fit = jnp.sum(alive) <= num_kept
    is_kept = jnp.where(all_fit, alive, is_certain | (is_chosen & alive))
    new_weights = jnp.where(all_fit | is_certain, log_weights, -log_scale)
    return is_kept, jnp.where(is_kept, new_weights, -jnp.inf)
