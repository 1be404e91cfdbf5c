"""Draws from large categorical distributions with one random number per row.

The Gumbel trick needs a random number per entry of the vocabulary, which costs as much
as a layer of a small model. Here a uniform number is looked up in the cumulative sum
instead. The lookup has two levels (blocks, then the entries of a block), since the
rounding errors of one long cumulative sum would be larger. If rounding leaves the sum
below the drawn number, the last entry with a positive probability is returned.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

BLOCK = 256


def categorical(
    keys: Key[Array, " R"], logits: Float[Array, "R V"]
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """Draw one index per row, each row from a key of its own.

    Args:
        keys: one key per row.
        logits: log-probabilities up to a constant; entries of -inf are never drawn.

    Returns:
        Indices, int32, and their normalised log-probabilities. A row without a finite
        entry gives index 0 and NaN.
    """
    rows, size = logits.shape
    # The uniform has the type of the logits, so that x64 draws the same tokens.
    dtype = jnp.promote_types(jnp.float32, logits.dtype)
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, dtype=dtype))(keys)
    # The exponentials are computed once: on a CPU one pass costs as much as a layer.
    peak = jnp.max(logits, axis=-1, keepdims=True)
    p = jnp.exp(logits - peak)
    p = jnp.where(jnp.isnan(p), 0.0, p)
    blocks = -(-size // BLOCK)
    p = jnp.pad(p, ((0, 0), (0, blocks * BLOCK - size))).reshape(rows, blocks, BLOCK)
    mass = jnp.sum(p, axis=-1)
    block, fraction = _look_up(mass, uniforms)
    inside = jnp.take_along_axis(p, block[:, None, None], axis=1)[:, 0]
    index, _ = _look_up(inside, fraction)
    index = block * BLOCK + index
    chosen = jnp.take_along_axis(logits, index[:, None], axis=-1) - peak
    return index, chosen[:, 0] - jnp.log(jnp.sum(mass, axis=-1))


def _look_up(
    weights: Float[Array, "R n"], uniforms: Float[Array, " R"]
) -> tuple[Int[Array, " R"], Float[Array, " R"]]:
    """Invert the cumulative sum; also the fraction of the entry's weight below u."""
    ends = jnp.cumsum(weights, axis=-1)
    place = uniforms * ends[:, -1]
    last = weights.shape[-1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)
    index = jnp.minimum(jnp.sum(ends <= place[:, None], axis=-1), last)
    weight = jnp.take_along_axis(weights, index[:, None], axis=-1)[:, 0]
    start = jnp.take_along_axis(ends, index[:, None], axis=-1)[:, 0] - weight
    fraction = (place - start) / jnp.where(weight > 0, weight, 1.0)
    return index.astype(jnp.int32), jnp.clip(fraction, 0.0, 1.0)
