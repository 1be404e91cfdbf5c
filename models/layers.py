"""Layers that are identical across model families.

Axes: R rows, Q query positions, S cache positions, L layers, D model width,
F feed-forward width, H query heads, K key-value heads, h head width, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


class Segment(NamedTuple):
    """A stretch of cached keys and values that queries may attend to.

    A segment may hold fewer rows than there are queries: with B rows for R = B·n
    queries, each row is shared by n consecutive queries. That is how the particles of
    one problem share the keys of its prompt without a copy.

    Attributes:
        keys: ``[L, B, S, K, h]``, rotated.
        values: ``[L, B, S, K, h]``.
        mask: ``[B, S]``, True where a position may be attended to.
    """

    keys: Float[Array, "L B S K h"]
    values: Float[Array, "L B S K h"]
    mask: Bool[Array, "B S"]


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, epsilon: float, *, dtype=jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Linear(nnx.Module):
    """A matrix product without bias, kernel ``[in, out]``."""

    def __init__(self, width_in: int, width_out: int, *, rngs: nnx.Rngs, dtype):
        kernel = jax.random.normal(rngs.params(), (width_in, width_out), jnp.float32)
        self.kernel = nnx.Param((kernel * width_in**-0.5).astype(dtype))

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return x @ self.kernel[...]


class SwiGLU(nnx.Module):
    """Gated feed-forward layer ``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, dtype):
        self.gate = Linear(width, hidden, rngs=rngs, dtype=dtype)
        self.up = Linear(width, hidden, rngs=rngs, dtype=dtype)
        self.down = Linear(hidden, width, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def rotate(
    x: Float[Array, "R Q H h"],
    positions: Int[Array, "R Q"],
    inverse_frequencies: Float[Array, " half"],
) -> Float[Array, "R Q H h"]:
    """Rotary position embedding in the half-split layout (arXiv 2104.09864).

    Pairs are (i, i + h/2), as in the Hugging Face checkpoints; llama.cpp pairs
    (2i, 2i + 1) and permutes its query and key rows to match.
    """
    angles = positions[..., None].astype(jnp.float32) * inverse_frequencies
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def attend(
    queries: Float[Array, "R Q H h"],
    keys: Float[Array, "R Q K h"],
    values: Float[Array, "R Q K h"],
    valid: Bool[Array, "R Q"],
    context: tuple[tuple[Array, Array, Array], ...],
) -> Float[Array, "R Q H h"]:
    """Grouped-query attention to a causal chunk and to any number of segments.

    Args:
        queries, keys, values: the chunk's own, rotated.
        valid: False at padding positions of the chunk.
        context: ``(keys [B, S, K, h], values [B, S, K, h], mask [B, S])`` of one
            layer, B dividing R (see :class:`Segment`).

    Returns:
        The attended values; one softmax in float32 runs over all segments together.
    """
    rows, length, heads, width = queries.shape
    groups = heads // keys.shape[2]
    causal = jnp.tril(jnp.ones((length, length), bool))
    own_mask = (causal & valid[:, None, :])[:, :, None, None, :]

    grouped = queries.reshape(rows, length, -1, groups, width)
    scores, sources = [], []
    for key, value, mask in (*context, (keys, values, None)):
        owners = key.shape[0]
        shared = grouped.reshape(owners, -1, *grouped.shape[2:])
        score = jnp.einsum(
            "bqkgh,bskh->bqkgs", shared, key, preferred_element_type=jnp.float32
        ).reshape(rows, length, *grouped.shape[2:4], -1)
        if mask is None:
            mask = own_mask
        else:
            mask = jnp.repeat(mask, rows // owners, axis=0)[:, None, None, None, :]
        # A finite floor: a padding query with nothing to attend to stays NaN-free.
        scores.append(jnp.where(mask, score * width**-0.5, -1e30))
        sources.append((owners, value))

    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    out, start = 0.0, 0
    for owners, value in sources:
        stop = start + value.shape[1]
        part = weights[..., start:stop].astype(value.dtype)
        part = part.reshape(owners, -1, *part.shape[2:])
        out += jnp.einsum("bqkgs,bskh->bqkgh", part, value).reshape(grouped.shape)
        start = stop
    return out.reshape(queries.shape)
