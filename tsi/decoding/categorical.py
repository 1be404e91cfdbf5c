"""Draws from large categorical distributions with 64 random bits per row.

The Gumbel trick needs a random number per entry of the vocabulary, which costs as much
as a layer of a small model. Here a uniform number is looked up in the cumulative sum
instead. The lookup has two levels, blocks and then the entries of a block. In each, the
weights are counted in units of 2^-30 of their total, and the arithmetic is in integers,
as in resampling. In floating point a uniform number of 23 bits is zero with probability
2^-23, and the first entry would be drawn that often even if its probability were 1e-20.

So an entry with less than 2^-31 of the weight of its block, or in a block with less
than 2^-31 of the whole, is never drawn.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from tsi.scaled_bits import position_bits, scale_bits

BLOCK = 256
UNITS = 2**30
"""Number of units in the total weight of a level."""


def categorical(
    keys: Key[Array, " R"], logits: Float[Array, "R V"]
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """Draw one index per row, each row with its own key.

    Args:
        keys: one key per row.
        logits: log-probabilities up to a constant; entries of -inf are never drawn.

    Returns:
        Indices, int32, and their normalised log-probabilities. A row without a finite
        entry gives index 0 and NaN.
    """
    words = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    return draw_by_bits(words, logits)


def draw_by_bits(
    words: UInt32[Array, "R 2"], logits: Float[Array, "R V"]
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """The same from 64 random bits per row."""
    rows, size = logits.shape
    # The exponentials are computed once: on a CPU one pass costs as much as a layer.
    peak = jnp.max(logits, axis=-1, keepdims=True)
    p = jnp.exp(logits - peak)
    p = jnp.where(jnp.isnan(p), 0.0, p)
    blocks = -(-size // BLOCK)
    p = jnp.pad(p, ((0, 0), (0, blocks * BLOCK - size))).reshape(rows, blocks, BLOCK)
    mass = jnp.sum(p, axis=-1)
    block, place, bound = _look_up(mass, words[:, 0])
    inside = jnp.take_along_axis(p, block[:, None, None], axis=1)[:, 0]
    index, _, _ = _look_up(inside, position_bits(place, words[:, 1], bound))
    index = block * BLOCK + index
    logit = jnp.take_along_axis(logits, index[:, None], axis=-1) - peak
    return index, logit[:, 0] - jnp.log(jnp.sum(mass, axis=-1))


def _look_up(
    weights: Float[Array, "R n"], bits: UInt32[Array, " R"]
) -> tuple[Int[Array, " R"], UInt32[Array, " R"], UInt32[Array, " R"]]:
    """Invert the cumulative sum of units.

    Returns:
        The entry, 0 if no weight is positive; the place within it, in units; and its
        number of units.
    """
    # bfloat16 has too few bits for units; float64 is kept.
    weights = weights.astype(jnp.promote_types(jnp.float32, weights.dtype))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    share = jnp.where(total > 0, weights / total, 0.0)
    units = jnp.round(share * UNITS).astype(jnp.uint32)
    ends = jnp.cumsum(units, axis=-1, dtype=jnp.uint32)
    place = scale_bits(bits, ends[:, -1])
    index = jnp.sum(ends <= place[:, None], axis=-1, dtype=jnp.int32)
    index = jnp.where(ends[:, -1] > 0, index, 0)
    end, bound = (
        jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
        for values in (ends, units)
    )
    return index, place - (end - bound), bound
