"""Resampling schemes: whom M draws with expected counts M W_i come from.

Every scheme is `(key, log_weights, num_samples) -> ancestors`, ancestors int32
[num_samples], and

    E[#{j : ancestors_j = i}] = num_samples * W_i.

Weights are counted in units of 2^-30 of their total (`UNITS`), and from there on every
number is an integer. In floating point the last partial sum may stay below one or,
summed in a tree, decrease from one entry to the next, and a uniform draw then lands on
a particle of zero weight; and a share that is one up to rounding takes the places of
all others. Integers add, multiply and divide exactly: the sum ends where it must, a
zero weight owns an empty interval, and shares are sure only where they are one.

One resolution holds for all schemes. The probability of each draw is right to 2^-30 of
the total weight; a positive weight below 2^-31 of the total is never drawn, and neither
is a weight of zero.

If every weight is zero, particles keep their places: ancestors are 0, 1, 2, ...

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
from tsi.step_keys import with_typed_key
from tsi.weights import all_dead, normalise

Resampling = Callable[..., Array]
"""`(key, log_weights [N], num_samples) -> ancestors [num_samples]`."""

UNITS = 2**30
"""Units of the total weight."""

BLOCK = 2**10
MOST = BLOCK**2
"""The most particles and samples of one draw: no product exceeds 32 bits."""


def in_units(log_weights: Float[Array, "N"]) -> UInt32[Array, "N"]:
    """Weights in units of 2^-30 of their total; their sum may miss it by N / 2 units.

    Raises:
        ConfigurationError: for more than 2^20 particles.
    """
    if log_weights.shape[0] > MOST:
        raise ConfigurationError(
            f"Resampling counts in 32 bits, which {log_weights.shape[0]} particles "
            f"exceed. Use at most {MOST}, or islands of at most as many."
        )
    weights = jnp.exp(normalise(log_weights))
    return jnp.round(weights * UNITS).astype(jnp.uint32)


def cumulate(units: UInt32[Array, "N"]) -> UInt32[Array, "N"]:
    """Cumulative sums; the last is the total."""
    return jnp.cumsum(units, dtype=jnp.uint32)


def holder(cdf: UInt32[Array, "N"], positions: UInt32[Array, "M"]) -> Int[Array, "M"]:
    """The particle whose interval [cdf_{i-1}, cdf_i) holds each position."""
    return jnp.searchsorted(cdf, positions, side="right").astype(jnp.int32)


def below(
    bits: UInt32[Array, "..."], bound: UInt32[Array, "..."]
) -> UInt32[Array, "..."]:
    """floor(bits * bound / 2^32): random bits as integers in [0, bound)."""
    low, high = bits & 0xFFFF, bits >> 16
    bound_low, bound_high = bound & 0xFFFF, bound >> 16
    middle = high * bound_low + ((low * bound_low) >> 16)
    carry = (middle & 0xFFFF) + low * bound_high
    return high * bound_high + (middle >> 16) + (carry >> 16)


def stay_if_dead(
    log_weights: Float[Array, "N"], ancestors: Int[Array, "M"]
) -> Int[Array, "M"]:
    """Ancestors 0, 1, 2, ... where no particle has weight."""
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
        num_places: K; positions from the K-th on mean nothing.

    Raises:
        ConfigurationError: for more than 2^20 samples.
    """
    if offsets.shape[0] > MOST:
        raise ConfigurationError(
            f"Resampling counts in 32 bits, which {offsets.shape[0]} samples exceed. "
            f"Use at most {MOST}, or islands of at most as many."
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
    cdf = cumulate(in_units(log_weights))
    positions = below(jax.random.bits(key, (num_samples,), jnp.uint32), cdf[-1])
    return stay_if_dead(log_weights, holder(cdf, positions))


@with_typed_key
def systematic(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """One uniform shifts a regular grid of M positions [1].

    Counts are within one of M times the weight. Arguments as in `multinomial`.
    """
    cdf = cumulate(in_units(log_weights))
    offset = below(jax.random.bits(key, (), jnp.uint32), cdf[-1])
    positions = grid(cdf[-1], jnp.broadcast_to(offset, num_samples), num_samples)
    return stay_if_dead(log_weights, holder(cdf, positions))


@with_typed_key
def stratified(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """One uniform position in each of M equal strata [1].

    Arguments as in `multinomial`.
    """
    cdf = cumulate(in_units(log_weights))
    offsets = below(jax.random.bits(key, (num_samples,), jnp.uint32), cdf[-1])
    positions = grid(cdf[-1], offsets, num_samples)
    return stay_if_dead(log_weights, holder(cdf, positions))


def _floor_counts(
    units: UInt32[Array, "N"], total: UInt32[Array, ""], num_samples: int
) -> tuple[Int[Array, "N"], UInt32[Array, "N"]]:
    """floor(M u_i / S) and M u_i mod S: sure children, and the rest in 1/S of a child.

    M u_i exceeds 32 bits, so it is doubled and added up by the binary digits of M,
    whole multiples of S being taken out on the way.
    """
    counts = jnp.zeros(units.shape, jnp.int32)
    remainders = jnp.zeros_like(units)
    for digit in f"{num_samples:b}":
        remainders = 2 * remainders + (units if digit == "1" else 0)
        wholes = remainders // total
        counts = 2 * counts + wholes.astype(jnp.int32)
        remainders = remainders - wholes * total
    return counts, remainders


@with_typed_key
def residual(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """floor(M W_i) children for sure, the rest multinomial on the remainders [1].

    A weight of 1/M comes out of float32 just below it, and a particle that is sure of a
    child must not be sent to the lottery. So a remainder that rounding can tell from a
    whole child no more is one with its own probability, and none otherwise, before the
    others share what is left; expected counts stay as they are. Arguments as in
    `multinomial`.
    """
    key_whole, key_rest = jax.random.split(key)
    units = in_units(log_weights)
    total = jnp.sum(units, dtype=jnp.uint32)
    counts, remainders = _floor_counts(units, total, num_samples)
    # Together these are less than one child away from whole ones, hence at most as many
    # as there are children left.
    finest = max(20, (num_samples + units.shape[0]).bit_length() + 1)
    tolerance = (counts.astype(jnp.uint32) + 1) * (total >> finest)
    nearly = (remainders > 0) & (total - remainders <= tolerance)
    bits = jax.random.bits(key_whole, units.shape, jnp.uint32)
    counts = counts + (nearly & (below(bits, total) < remainders))
    rest = jnp.where(nearly, 0, remainders).astype(jnp.float32)
    drawn = multinomial(key_rest, jnp.log(rest), num_samples)
    slots = jnp.arange(num_samples)
    sure = jnp.minimum(_from_counts(counts, num_samples), counts.shape[0] - 1)
    ancestors = jnp.where(slots < jnp.sum(counts), sure, drawn)
    return stay_if_dead(log_weights, ancestors)


@with_typed_key
def ssp(
    key: Key[Array, ""], log_weights: Float[Array, "N"], num_samples: int
) -> Int[Array, "M"]:
    """The Srinivasan sampling process: counts are floor or ceil of M W_i [2].

    Two particles with fractional parts a and b meet: if a + b < 1 one of them takes all
    of it and the other none; otherwise one is rounded up and the other keeps
    a + b - 1. Whoever is still fractional meets the next; as all parts sum to a whole
    number, nothing is left of the last. Arguments as in `multinomial`.
    """
    units = in_units(log_weights)
    one = jnp.sum(units, dtype=jnp.uint32)
    counts, fractions = _floor_counts(units, one, num_samples)
    num_particles = counts.shape[0]
    bits = jax.random.bits(key, (num_particles,), jnp.uint32)

    def meet(
        undecided: tuple[Array, Array], other: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        i, a = undecided
        j, b, draw = other
        both = a + b
        small = both < one
        # small: i goes on holding all of it with probability a / (a + b).
        # large: i is rounded up with probability (1 - b) / (2 - a - b), j goes on.
        i_wins = jnp.where(
            small, below(draw, both) < a, below(draw, 2 * one - both) < one - b
        )
        goes_on = jnp.where(i_wins == small, i, j)
        rounded_up = jnp.where(small, -1, jnp.where(i_wins, i, j))
        left = jnp.where(small, both, both - one)
        return (goes_on, left), (rounded_up, jnp.ones_like(i))

    indices = jnp.arange(num_particles, dtype=jnp.int32)
    _, (rounded_up, ones) = jax.lax.scan(
        meet, (indices[0], fractions[0]), (indices[1:], fractions[1:], bits[1:])
    )
    extra = jnp.where(rounded_up >= 0, ones, 0)
    counts = counts.at[rounded_up].add(extra, mode="drop")
    return stay_if_dead(log_weights, _from_counts(counts, num_samples))
