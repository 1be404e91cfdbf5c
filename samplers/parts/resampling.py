"""Resampling schemes: M ancestors with expected counts M W_i.

Every scheme is `(key, log_weights, num_samples) -> ancestors`, ancestors int32
[num_samples], and

    E[#{j : ancestors_j = i}] = num_samples * W_i.

Weights are rounded to units of 2^-30 of their total (`UNITS`), and all further
arithmetic is in integers. In floating point the last partial sum may be less than one
or, summed in a tree, decrease from one entry to the next; a uniform draw may then
select a particle of zero weight. And a share that rounds to one may replace all others.
Integer arithmetic is exact: the last sum is the total, a zero weight has an empty
interval, and only a share of exactly one is certain.

All schemes have the same resolution. The probability of each draw is accurate to 2^-30
of the total weight. A positive weight below 2^-31 of the total is never drawn, nor is a
weight of zero.

If every weight is zero, particles keep their indices: ancestors are 0, 1, 2, ...

References:
    [1] Douc, Cappe and Moulines 2005, cs/0507025 (multinomial, residual, stratified,
        systematic).
    [2] Gerber, Chopin and Whiteley 2019, arXiv 1708.02230 (SSP).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key, UInt32

from tsi.errors import ConfigurationError
from tsi.scaled_bits import scale_bits
from tsi.step_keys import with_typed_key
from tsi.weights import all_dead, normalise

Resampling = Callable[..., Array]
"""`(key, log_weights [N], num_samples) -> ancestors [num_samples]`."""

UNITS = 2**30
"""Number of units in the total weight."""

BLOCK = 2**10
MAX_SIZE = BLOCK**2
"""Largest number of particles or samples per draw: products fit in 32 bits."""


def count_units(log_weights: Float[Array, "N"]) -> UInt32[Array, "N"]:
    """Weights in units of 2^-30 of their total; the sum is within N / 2 units of 2^30.

    Raises:
        ConfigurationError: for more than 2^20 particles.
    """
    if log_weights.shape[0] > MAX_SIZE:
        raise ConfigurationError(
            f"Resampling uses 32-bit integers, which limits it to {MAX_SIZE} "
            f"particles; got {log_weights.shape[0]}. Use fewer particles, or smaller "
            "islands."
        )
    weights = jnp.exp(normalise(log_weights))
    return jnp.round(weights * UNITS).astype(jnp.uint32)


def cumulate(units: UInt32[Array, "N"]) -> UInt32[Array, "N"]:
    """Cumulative sums; the last is the total."""
    return jnp.cumsum(units, dtype=jnp.uint32)


def find_interval(
    cdf: UInt32[Array, "N"], positions: UInt32[Array, "M"]
) -> Int[Array, "M"]:
    """The particle whose interval [cdf_{i-1}, cdf_i) contains each position."""
    return jnp.searchsorted(cdf, positions, side="right").astype(jnp.int32)


def stay_if_dead(
    log_weights: Float[Array, "N"], ancestors: Int[Array, "M"]
) -> Int[Array, "M"]:
    """Replace ancestors by 0, 1, 2, ... if no particle has weight."""
    places = jnp.arange(ancestors.shape[0], dtype=jnp.int32) % log_weights.shape[0]
    return jnp.where(all_dead(log_weights), places, ancestors.astype(jnp.int32))


def _from_counts(counts: Int[Array, "N"], num_samples: int) -> Int[Array, "M"]:
    """Each particle repeated `counts` times, in order of the particles."""
    slots = jnp.arange(num_samples, dtype=jnp.int32)
    return jnp.searchsorted(jnp.cumsum(counts), slots, side="right").astype(jnp.int32)


def grid(
    total: UInt32[Array, ""],
    offsets: UInt32[Array, "M"],
    num_places: Integer[Array, ""] | int,
) -> UInt32[Array, "M"]:
    """Positions floor((k total + offset_k) / K), k = 0, ..., M - 1.

    Args:
        total: of the units.
        offsets: each in [0, total).
        num_places: K; positions from the K-th on are arbitrary.

    Raises:
        ConfigurationError: for more than 2^20 samples.
    """
    if offsets.shape[0] > MAX_SIZE:
        raise ConfigurationError(
            f"Resampling uses 32-bit integers, which limits it to {MAX_SIZE} samples; "
            f"got {offsets.shape[0]}. Draw fewer samples, or use smaller islands."
        )
    size = jnp.asarray(num_places, jnp.uint32)
    whole, rest = total // size, total % size
    places = jnp.arange(offsets.shape[0], dtype=jnp.uint32)
    # k rest / M in blocks of 1,024 places: k rest itself may exceed 32 bits.
    block, place = places // BLOCK, places % BLOCK
    block_whole, block_rest = (BLOCK * rest) // size, (BLOCK * rest) % size
    parts = block * block_rest + place * rest + offsets % size
    return places * whole + block * block_whole + offsets // size + parts // size


@with_typed_key
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
    cdf = cumulate(count_units(log_weights))
    positions = scale_bits(jax.random.bits(key, (num_samples,), jnp.uint32), cdf[-1])
    return stay_if_dead(log_weights, find_interval(cdf, positions))


@with_typed_key
def systematic(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """One uniform shifts a regular grid of M positions [1].

    Counts differ from M W_i by less than one. Arguments as in `multinomial`.
    """
    cdf = cumulate(count_units(log_weights))
    offset = scale_bits(jax.random.bits(key, (), jnp.uint32), cdf[-1])
    positions = grid(cdf[-1], jnp.broadcast_to(offset, num_samples), num_samples)
    return stay_if_dead(log_weights, find_interval(cdf, positions))


@with_typed_key
def stratified(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """One uniform position in each of M equal strata [1].

    Arguments as in `multinomial`.
    """
    cdf = cumulate(count_units(log_weights))
    offsets = scale_bits(jax.random.bits(key, (num_samples,), jnp.uint32), cdf[-1])
    positions = grid(cdf[-1], offsets, num_samples)
    return stay_if_dead(log_weights, find_interval(cdf, positions))


def _floor_counts(
    units: UInt32[Array, "N"], total: UInt32[Array, ""], num_samples: int
) -> tuple[Int[Array, "N"], UInt32[Array, "N"]]:
    """floor(M u_i / S) and M u_i mod S: whole children, and remainders in units of 1/S.

    M u_i exceeds 32 bits, so it is computed by the binary digits of M, with doubling
    and addition, and multiples of S are subtracted at every digit.
    """
    counts = jnp.zeros(units.shape, jnp.int32)
    remainders = jnp.zeros_like(units)
    for digit in f"{num_samples:b}":
        remainders = 2 * remainders + (units if digit == "1" else 0)
        integer_parts = remainders // total
        counts = 2 * counts + integer_parts.astype(jnp.int32)
        remainders = remainders - integer_parts * total
    return counts, remainders


@with_typed_key
def residual(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """floor(M W_i) whole children, and multinomial draws on the remainders [1].

    In float32 a weight of 1/M may be just below 1/M, and the particle would lose its
    whole child to the multinomial draws. So a remainder that differs from a whole child
    by rounding only is rounded up with its own probability, and otherwise set to zero,
    before the others share the children that are left. Expected counts do not change.
    Arguments as in `multinomial`.
    """
    key_whole, key_rest = jax.random.split(key)
    units = count_units(log_weights)
    total = jnp.sum(units, dtype=jnp.uint32)
    counts, remainders = _floor_counts(units, total, num_samples)
    # In total these remainders are less than one child below whole children, so there
    # are at most as many of them as children left.
    num_bits = max(20, (num_samples + units.shape[0]).bit_length() + 1)
    tolerance = (counts.astype(jnp.uint32) + 1) * (total >> num_bits)
    is_nearly_whole = (remainders > 0) & (total - remainders <= tolerance)
    bits = jax.random.bits(key_whole, units.shape, jnp.uint32)
    counts = counts + (is_nearly_whole & (scale_bits(bits, total) < remainders))
    rest = jnp.where(is_nearly_whole, 0, remainders).astype(jnp.float32)
    indices = multinomial(key_rest, jnp.log(rest), num_samples)
    slots = jnp.arange(num_samples)
    whole_children = jnp.minimum(_from_counts(counts, num_samples), counts.shape[0] - 1)
    ancestors = jnp.where(slots < jnp.sum(counts), whole_children, indices)
    return stay_if_dead(log_weights, ancestors)


@with_typed_key
def ssp(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """The Srinivasan sampling process: counts are floor or ceil of M W_i [2].

    Two particles with fractional parts a and b are compared. If a + b < 1, one of them
    gets a + b and the other zero; otherwise one is rounded up and the other keeps
    a + b - 1. The particle that is still fractional is compared with the next one. All
    parts sum to an integer, so no fraction is left at the end. Arguments as in
    `multinomial`.
    """
    units = count_units(log_weights)
    one = jnp.sum(units, dtype=jnp.uint32)
    counts, fractions = _floor_counts(units, one, num_samples)
    num_particles = counts.shape[0]
    bits = jax.random.bits(key, (num_particles,), jnp.uint32)

    def compare(
        current: tuple[Array, Array], other: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        i, a = current
        j, b, draw = other
        total = a + b
        is_small = total < one
        # small: i keeps a + b with probability a / (a + b).
        # large: i is rounded up with probability (1 - b) / (2 - a - b), j stays.
        i_wins = jnp.where(
            is_small,
            scale_bits(draw, total) < a,
            scale_bits(draw, 2 * one - total) < one - b,
        )
        still_fractional = jnp.where(i_wins == is_small, i, j)
        rounded_up = jnp.where(is_small, -1, jnp.where(i_wins, i, j))
        fraction = jnp.where(is_small, total, total - one)
        return (still_fractional, fraction), (rounded_up, jnp.ones_like(i))

    indices = jnp.arange(num_particles, dtype=jnp.int32)
    _, (rounded_up, ones) = jax.lax.scan(
        compare, (indices[0], fractions[0]), (indices[1:], fractions[1:], bits[1:])
    )
    extra = jnp.where(rounded_up >= 0, ones, 0)
    counts = counts.at[rounded_up].add(extra, mode="drop")
    return stay_if_dead(log_weights, _from_counts(counts, num_samples))
