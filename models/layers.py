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
        keys: ``[L, B, K, h, S]``, rotated. Positions are innermost, since that is the
            layout in which a product with a few queries streams through memory.
        values: ``[L, B, K, S, h]``.
        mask: ``[B, S]``, True where a position may be attended to.
    """

    keys: Float[Array, "L B K h S"]
    values: Float[Array, "L B K S h"]
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


class Partial(NamedTuple):
    """A softmax-weighted sum over part of the positions, not yet normalised."""

    peak: Float[Array, "R Q K G"]
    total: Float[Array, "R Q K G"]
    mixed: Float[Array, "R Q K G h"]


def attend_part(
    queries: Float[Array, "R Q K G h"],
    keys: Float[Array, "B K h S"],
    values: Float[Array, "B K S h"],
    mask: Bool[Array, "*m S"],
) -> Partial:
    """Attention over one stretch of positions, B dividing R (see :class:`Segment`).

    ``mask`` broadcasts against ``[B, K, n, Q, G, S]``.
    """
    rows, owners = queries.shape[0], keys.shape[0]
    shared = queries.reshape(owners, rows // owners, *queries.shape[1:])
    shared = jnp.transpose(shared, (0, 3, 1, 2, 4, 5)) * queries.shape[-1] ** -0.5
    scores = jnp.einsum(
        "bknqgh,bkhs->bknqgs", shared, keys, preferred_element_type=jnp.float32
    )
    # A finite floor keeps a query with nothing to attend to free of NaN; its part
    # vanishes in the merge, or is a padding position that nobody reads.
    scores = jnp.where(mask, scores, -1e30)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    mixed = jnp.einsum(
        "bknqgs,bksh->bknqgh",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )

    def by_row(x: Array) -> Array:
        x = jnp.moveaxis(x, 1, 3)
        return x.reshape(rows, *x.shape[2:])

    return Partial(by_row(peak), by_row(jnp.sum(weights, -1)), by_row(mixed))


def attend(
    queries: Float[Array, "R Q H h"],
    keys: Float[Array, "R K h Q"],
    values: Float[Array, "R K Q h"],
    valid: Bool[Array, "R Q"],
    context: tuple[tuple[Array, Array, Array], ...],
) -> Float[Array, "R Q H h"]:
    """Grouped-query attention to a causal chunk and to any number of segments.

    Each segment is reduced on its own and the parts are merged with one normaliser, so
    that shared segments are never repeated and scores are never concatenated.

    Args:
        queries, keys, values: the chunk's own, rotated.
        valid: False at padding positions of the chunk.
        context: ``(keys, values, mask)`` of one layer of each :class:`Segment`.
    """
    rows, length, _, width = queries.shape
    grouped = queries.reshape(rows, length, keys.shape[1], -1, width)
    causal = jnp.tril(jnp.ones((length, length), bool)) & valid[:, None, :]
    parts = [
        attend_part(grouped, keys, values, causal[:, None, None, :, None, :]),
        *(
            attend_part(grouped, k, v, m[:, None, None, None, None, :])
            for k, v, m in context
        ),
    ]
    peak = jnp.max(jnp.stack([part.peak for part in parts]), axis=0)
    total, mixed = jnp.zeros_like(peak), jnp.zeros(grouped.shape, jnp.float32)
    for part in parts:
        scale = jnp.exp(part.peak - peak)
        total += scale * part.total
        mixed += scale[..., None] * part.mixed
    return (mixed / total[..., None]).astype(queries.dtype).reshape(queries.shape)
