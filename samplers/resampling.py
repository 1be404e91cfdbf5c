"""Proportional resampling: expected counts equal to N times the normalised weights.

Every scheme is `(key, log_weights, num_samples) -> ancestors`, ancestors int32
[num_samples], and

    E[#{j : ancestors_j = i}] = num_samples * W_i.

Cumulative sums are taken over integers. In floating point the last partial sum may
stay below one or, summed in a tree, decrease from one entry to the next, and a uniform
draw then lands on a particle of zero weight. Integers add exactly: the sum ends where
it must, and a zero weight owns an empty interval. The price is a resolution of 2^-31 of
the total weight.

If every weight is zero, particles keep their places: ancestors are 0, 1, 2, ...

References:
    [1] Douc, Cappe and Moulines 2005, cs/0507025 (multinomial, residual, stratified,
        systematic).
    [2] Gerber, Chopin and Whiteley 2019, arXiv 1708.02230 (SSP).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from tsi.weights import all_dead, normalise

Resampling = Callable[..., Array]
"""`(key, log_weights [N], num_samples) -> ancestors [num_samples]`."""

TOTAL = 2.0**31


def _integer_cdf(log_weights: Float[Array, "N"]) -> UInt32[Array, "N"]:
    """Cumulative sums of the weights in units of 2^-31 of their total."""
    weights = jnp.exp(normalise(log_weights))
    units = jnp.round(weights * TOTAL).astype(jnp.uint32)
    return jnp.cumsum(units, dtype=jnp.uint32)


def _inverse(cdf: UInt32[Array, "N"], positions: UInt32[Array, "M"]) -> Int[Array, "M"]:
    """The particle whose interval [cdf_{i-1}, cdf_i) holds each position."""
    positions = jnp.minimum(positions, cdf[-1] - 1)
    return jnp.searchsorted(cdf, positions, side="right").astype(jnp.int32)


def _stay_if_dead(
    log_weights: Float[Array, "N"], ancestors: Int[Array, "M"]
) -> Int[Array, "M"]:
    """Ancestors 0, 1, 2, ... where no particle has weight."""
    places = jnp.arange(ancestors.shape[0], dtype=jnp.int32) % log_weights.shape[0]
    return jnp.where(all_dead(log_weights), places, ancestors.astype(jnp.int32))


def _from_counts(counts: Int[Array, "N"], num_samples: int) -> Int[Array, "M"]:
    """Each particle repeated `counts` times, in order of the particles."""
    slots = jnp.arange(num_samples, dtype=jnp.int32)
    return jnp.searchsorted(jnp.cumsum(counts), slots, side="right").astype(jnp.int32)


def _grid(
    total: UInt32[Array, ""], offsets: Float[Array, "M"], num_samples: int
) -> UInt32[Array, "M"]:
    """Positions (k + offset_k) * total / M without leaving 32 bits."""
    places = jnp.arange(num_samples, dtype=jnp.uint32)
    whole = total // jnp.uint32(num_samples)
    rest = (total % jnp.uint32(num_samples)).astype(jnp.float32)
    width = total.astype(jnp.float32) / num_samples
    fine = rest * (places.astype(jnp.float32) / num_samples) + offsets * width
    return places * whole + jnp.floor(fine).astype(jnp.uint32)


def multinomial(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """Independent draws, each proportional to the weights [1].

    Args:
        key: a typed key.
        log_weights: unnormalised log weights, [N].
        num_samples: M, static; may differ from N.

    Returns:
        Ancestors [M], int32.
    """
    cdf = _integer_cdf(log_weights)
    bits = jax.random.bits(key, (num_samples,), jnp.uint32) >> 1
    # Rounding makes the total miss 2^31 by a little: stretch the draws to it.
    excess = (cdf[-1] - jnp.uint32(TOTAL)).astype(jnp.int32).astype(jnp.float32)
    stretch = jnp.floor(bits.astype(jnp.float32) * (excess / TOTAL)).astype(jnp.int32)
    positions = bits + stretch.astype(jnp.uint32)
    return _stay_if_dead(log_weights, _inverse(cdf, positions))


def systematic(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """One uniform shifts a regular grid of M positions [1].

    Counts are within one of M times the weight. Arguments as in `multinomial`.
    """
    return systematic_from(jax.random.uniform(key), log_weights, num_samples)


def systematic_from(
    offset: Float[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """The systematic sample of a grid shifted by `offset`, in [0, 1)."""
    cdf = _integer_cdf(log_weights)
    positions = _grid(cdf[-1], jnp.full(num_samples, offset), num_samples)
    return _stay_if_dead(log_weights, _inverse(cdf, positions))


def stratified(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """One uniform position in each of M equal strata [1].

    Arguments as in `multinomial`.
    """
    cdf = _integer_cdf(log_weights)
    offsets = jax.random.uniform(key, (num_samples,))
    positions = _grid(cdf[-1], offsets, num_samples)
    return _stay_if_dead(log_weights, _inverse(cdf, positions))


def _floor_counts(
    log_weights: Float[Array, "N"], num_samples: int
) -> tuple[Int[Array, "N"], Float[Array, "N"]]:
    """floor(M W_i) and the fractional part that remains."""
    expected = num_samples * jnp.exp(normalise(log_weights))
    # A weight of 1/N in float32 may come out just below it, and a particle that is
    # sure of one child must not be sent to the lottery.
    counts = jnp.floor(expected * (1.0 + 2e-6))
    return counts.astype(jnp.int32), jnp.maximum(expected - counts, 0.0)


def residual(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """floor(M W_i) children for sure, the rest multinomial on the remainders [1].

    Arguments as in `multinomial`.
    """
    counts, remainders = _floor_counts(log_weights, num_samples)
    # Without remainders there is nothing left to draw, unless rounding says otherwise.
    log_remainders = jnp.where(
        jnp.any(remainders > 0.0), jnp.log(remainders), log_weights
    )
    drawn = multinomial(key, log_remainders, num_samples)
    slots = jnp.arange(num_samples)
    sure = jnp.minimum(_from_counts(counts, num_samples), counts.shape[0] - 1)
    ancestors = jnp.where(slots < jnp.sum(counts), sure, drawn)
    return _stay_if_dead(log_weights, ancestors)


def ssp(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """The Srinivasan sampling process: counts are floor or ceil of M W_i [2].

    Two particles with fractional parts a and b meet: if a + b < 1 one of them takes all
    of it and the other none; otherwise one is rounded up and the other keeps
    a + b - 1. Whoever is still fractional meets the next. Arguments as in
    `multinomial`.
    """
    counts, fractions = _floor_counts(log_weights, num_samples)
    num_particles = counts.shape[0]
    uniforms = jax.random.uniform(key, (num_particles,))

    def meet(
        undecided: tuple[Array, Array], other: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        i, a = undecided
        j, b, u = other
        total = a + b
        small = total < 1.0
        # small: i goes on holding all of it with probability a / (a + b).
        # large: i is rounded up with probability (1 - b) / (2 - a - b), j goes on.
        i_wins = jnp.where(
            small,
            u * jnp.maximum(total, 1e-37) < a,
            u * (2.0 - total) < 1.0 - b,
        )
        goes_on = jnp.where(i_wins == small, i, j)
        rounded_up = jnp.where(small, -1, jnp.where(i_wins, i, j))
        left = jnp.where(small, total, total - 1.0)
        return (goes_on, left), (rounded_up, jnp.ones_like(i))

    indices = jnp.arange(num_particles, dtype=jnp.int32)
    (last, _), (rounded_up, ones) = jax.lax.scan(
        meet,
        (indices[0], fractions[0]),
        (indices[1:], fractions[1:], uniforms[1:]),
    )
    extra = jnp.where(rounded_up >= 0, ones, 0)
    counts = counts.at[rounded_up].add(extra, mode="drop")
    # The last fraction is zero or one up to rounding; a particle of zero weight may be
    # the one that holds it, and must not profit.
    alive = jnp.isfinite(log_weights[last])
    heir = jnp.where(alive, last, jnp.argmax(normalise(log_weights)))
    counts = counts.at[heir].add(jnp.maximum(num_samples - jnp.sum(counts), 0))
    return _stay_if_dead(log_weights, _from_counts(counts, num_samples))
