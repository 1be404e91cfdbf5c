"""Optimal resampling: keep K of N weighted particles, none of them twice.

With c such that sum_i min(1, c w_i) = K, particle i is kept with probability
min(1, c w_i): every particle of weight at least 1/c for sure, with its weight, and the
others by systematic sampling, with weight 1/c. So

    kept weight  max(w_i, 1/c)  with probability  min(1, c w_i),  zero otherwise,

which has expectation w_i, and the total weight stays as it is. Among unbiased ways to
keep at most K particles it minimises sum_i E (new w_i - w_i)^2.

The threshold is found in log space, because those that are kept for sure may outweigh
the others by any factor. The others share the places that are left in units of 2^-30
of their own total, as in `samplers/parts/resampling.py`.

References:
    [1] Fearnhead and Clifford 2003, On-line inference for hidden Markov models via
        particle filters, JRSS B 65, 887-899.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from tsi.samplers.parts.resampling import below, cumulate, grid, holder, in_units
from tsi.step_keys import with_typed_key
from tsi.weights import sanitise


class Threshold(NamedTuple):
    """Which particles are kept for sure, and what becomes of the others.

    Attributes:
        sure: [N].
        num_sure: how many; fewer than K.
        log_scale: log c, of the others.
    """

    sure: Bool[Array, "N"]
    num_sure: Int[Array, ""]
    log_scale: Float[Array, ""]


def threshold(log_weights: Float[Array, "N"], num_kept: int) -> Threshold:
    """The split into sure and other particles for K places, K less than N.

    With the a largest kept for sure, c = (K - a) / (sum of the others); the first a for
    which the next one is not sure as well is the right one.
    """
    order = jnp.argsort(log_weights, descending=True, stable=True)
    ordered = log_weights[order]
    log_tails = jax.lax.cumlogsumexp(ordered, reverse=True)[:num_kept]
    log_places = jnp.log(num_kept - jnp.arange(num_kept, dtype=ordered.dtype))
    num_sure = jnp.argmax(log_places + ordered[:num_kept] <= log_tails)
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]))
    log_scale = log_places[num_sure] - log_tails[num_sure]
    return Threshold(ranks < num_sure, num_sure, log_scale)


def inclusion_probabilities(
    log_weights: Float[Array, "N"], num_kept: int
) -> Float[Array, "N"]:
    """min(1, c w_i), which sum to K; 1 for every positive weight if K or fewer are."""
    log_weights = sanitise(log_weights)
    alive = log_weights > -jnp.inf
    num_kept = min(num_kept, log_weights.shape[0])
    sure, _, log_scale = threshold(log_weights, num_kept)
    probabilities = jnp.where(sure, 1.0, jnp.exp(log_weights + log_scale))
    enough = jnp.sum(alive) <= num_kept
    return jnp.where(enough, 1.0 * alive, jnp.minimum(probabilities, 1.0))


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
        Which particles are kept, [N]: K of them, or all that have weight if those are
        fewer. And their new log weights, [N], -inf for those not kept.
    """
    log_weights = sanitise(log_weights)
    alive = log_weights > -jnp.inf
    num_kept = min(num_kept, log_weights.shape[0])
    sure, num_sure, log_scale = threshold(log_weights, num_kept)

    others = jnp.where(sure, -jnp.inf, log_weights)
    cdf = cumulate(in_units(others))
    places_left = num_kept - num_sure
    offset = below(jax.random.bits(key, (), jnp.uint32), cdf[-1])
    positions = grid(cdf[-1], jnp.broadcast_to(offset, num_kept), places_left)
    drawn = holder(cdf, positions)
    drawn = jnp.where(jnp.arange(num_kept) < places_left, drawn, alive.shape[0])
    chosen = jnp.zeros_like(alive).at[drawn].set(True, mode="drop")

    enough = jnp.sum(alive) <= num_kept
    kept = jnp.where(enough, alive, sure | (chosen & alive))
    new = jnp.where(enough | sure, log_weights, -log_scale)
    return kept, jnp.where(kept, new, -jnp.inf)
