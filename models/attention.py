"""Attention of queries to cached keys and values, in segments.

Axes are those of :mod:`tsi.models.layers`, and B rows of a segment.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.models.decode_kernel import attend_first_positions

KEYS_AT_ONCE = 512
"""Cached positions per block, where a chunk of many queries attends block by block."""
MANY_SCORES = 2**18
"""With this many scores per row and head or more, attention goes block by block."""


class Routes(NamedTuple):
    """Which rows of queries read which row of a segment, at most n per segment row.

    Attributes:
        readers: ``[B, n]``, rows of queries; unused entries are any row.
        places: ``[R]``, the index of each row in the flattened ``readers``.
    """

    readers: Int[Array, "B n"]
    places: Int[Array, " R"]


class Segment(NamedTuple):
    """A stretch of cached keys and values that queries may attend to.

    A segment may have fewer rows than there are rows of queries: with B segment rows
    for R = B·n query rows, n consecutive query rows share each segment row. So the
    particles of one problem share the keys of its prompt without a copy. For query rows
    in another order, :class:`Routes` state which row reads which; queries are then
    moved to the segment's rows, and the results are moved back.

    Attributes:
        keys: ``[L, B, K, h, S]``, rotated. Positions are innermost, because a product
            with a few queries then reads memory in order. Or L arrays ``[B, K, h, S]``:
            a scan over layers would copy a layer of one array before reading it, which
            takes longer than the attention itself.
        values: ``[L, B, K, S, h]``, or L arrays ``[B, K, S, h]``.
        positions: ``[B, S]``, counted from the prompt's start.
        mask: ``[B, S]``, True where a position may be attended to; or ``[R, S]``, if
            rows that share a segment row may attend to different parts of it.
        routes: which rows read which; None for n consecutive rows per segment row.
        lengths: number of first positions that each row attends to. With it, a kernel
            reads them (:mod:`tsi.models.decode_kernel`), and keys are ``[B, K, S, h]``.
    """

    keys: Any
    values: Any
    positions: Int[Array, "B S"]
    mask: Bool[Array, "M S"]
    routes: Routes | None = None
    lengths: Int[Array, " R"] | None = None


class View(NamedTuple):
    """The positions of a segment that the queries of one forward pass attend to.

    Attributes:
        mask: True at these positions; broadcasts against ``[B, K, n, Q, G, S]``.
        routes, lengths: of the segment.
    """

    mask: Bool[Array, "B 1 _n _Q 1 S"]
    routes: Routes | None = None
    lengths: Int[Array, " R"] | None = None


class ByLayer(NamedTuple):
    """One layer of a segment that has an array per layer."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    layer: Int[Array, ""]


class Partial(NamedTuple):
    """A softmax-weighted sum over some of the positions, before normalisation."""

    peak: Float[Array, "R Q K G"]
    total: Float[Array, "R Q K G"]
    mixed: Float[Array, "R Q K G h"]


def attend_part(
    queries: Float[Array, "R Q K G h"],
    keys: Float[Array, "B K h S"],
    values: Float[Array, "B K S h"],
    view: View,
    softcap: float | None = None,
) -> Partial:
    """Attention over one segment; the queries are already scaled.

    Without routes B divides R (see :class:`Segment`).
    """
    mask, routes = view[:2]
    if routes is not None:
        queries = queries[routes.readers.reshape(-1)]
    rows, owners = queries.shape[0], keys.shape[0]
    shared = queries.reshape(owners, rows // owners, *queries.shape[1:])
    shared = jnp.transpose(shared, (0, 3, 1, 2, 4, 5))
    scores = jnp.einsum(
        "bknqgh,bkhs->bknqgs", shared, keys, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    # A finite minimum avoids NaN for a query without visible positions. Its part has
    # weight zero in the merge, or it is a padding position that nobody reads.
    scores = jnp.where(mask, scores, -1e30)
    peak = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - peak[..., None])
    mixed = jnp.einsum(
        "bknqgs,bksh->bknqgh",
        # In the type of the queries if only the cache is narrower.
        weights.astype(jnp.promote_types(values.dtype, queries.dtype)),
        values,
        preferred_element_type=jnp.float32,
    )

    def arrange_by_row(x: Array) -> Array:
        x = jnp.moveaxis(x, 1, 3)
        x = x.reshape(rows, *x.shape[2:])
        return x if routes is None else x[routes.places]

    return Partial(
        arrange_by_row(peak),
        arrange_by_row(jnp.sum(weights, -1)),
        arrange_by_row(mixed),
    )


def merge(parts: Sequence[Partial]) -> Partial:
    """Merge the sums over several segments into the sum over all of them."""
    peak = jnp.max(jnp.stack([part.peak for part in parts]), axis=0)
    total, mixed = jnp.zeros_like(peak), jnp.zeros(parts[0].mixed.shape, jnp.float32)
    for part in parts:
        scale = jnp.exp(part.peak - peak)
        total += scale * part.total
        mixed += scale[..., None] * part.mixed
    return Partial(peak, total, mixed)


def attend_in_blocks(
    queries: Float[Array, "R Q K G h"],
    keys: Float[Array, "B K h S"],
    values: Float[Array, "B K S h"],
    view: View,
    softcap: float | None = None,
) -> Partial:
    """`attend_part` block by block, so that memory holds the scores of one block.

    Blocks that no query attends to are not read. Reference: arXiv 2112.05682.
    """
    size, block = keys.shape[-1], KEYS_AT_ONCE

    def read(i: Array, before: Partial) -> Partial:
        # The last block begins early enough to be whole; positions that an earlier
        # block had are masked.
        start = jnp.minimum(i * block, size - block)
        piece = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=block
        )
        is_new = start + jnp.arange(block) >= i * block
        block_view = View(piece(view.mask, axis=-1) & is_new, view.routes)
        return jax.lax.cond(
            jnp.any(block_view.mask),
            lambda: merge(
                [
                    before,
                    attend_part(
                        queries,
                        piece(keys, axis=-1),
                        piece(values, axis=-2),
                        block_view,
                        softcap,
                    ),
                ]
            ),
            lambda: before,
        )

    shape = queries.shape
    empty = Partial(
        jnp.full(shape[:-1], -1e30, jnp.float32),
        jnp.zeros(shape[:-1], jnp.float32),
        jnp.zeros(shape, jnp.float32),
    )
    return jax.lax.fori_loop(0, -(-size // block), read, empty)


def attend_by_kernel(
    queries: Float[Array, "R 1 K G h"],
    keys: Float[Array, "R K S h"],
    values: Float[Array, "R K S h"],
    lengths: Int[Array, " R"],
) -> Partial:
    """`attend_part` for one query per row that attends to the first positions."""
    parts = attend_first_positions(queries[:, 0], keys, values, lengths)
    return Partial(*(part[:, None] for part in parts))


def attend_to_cache(
    queries: Float[Array, "R Q K G h"], cached: Any, view: View, softcap: float | None
) -> Partial:
    """`attend_part` on one layer of a segment: its keys and values, or `ByLayer`."""
    length, size = queries.shape[1], view.mask.shape[-1]
    by_blocks = size >= 2 * KEYS_AT_ONCE and length * size >= MANY_SCORES
    attention = attend_in_blocks if by_blocks else attend_part
    attend_layer = functools.partial(attention, view=view, softcap=softcap)
    if view.lengths is not None:
        attend_layer = functools.partial(attend_by_kernel, lengths=view.lengths)
    if not isinstance(cached, ByLayer):
        return attend_layer(queries, *cached)

    def reader(keys: Array, values: Array) -> Callable[[Array], Partial]:
        return lambda x: attend_layer(x, keys, values)

    readers = [reader(*pair) for pair in zip(*cached[:2], strict=True)]
    return jax.lax.switch(cached.layer, readers, queries)


def view_segment(
    segment: Segment,
    positions: Int[Array, "R Q"],
    window: Int[Array, ""] | int | None,
) -> View:
    """The cached positions that each query may attend to.

    Args:
        segment: only its positions, mask and routes are used.
        positions: of the queries.
        window: how many positions a query attends to, its own included; None for all.
    """
    owners, routes = segment.positions.shape[0], segment.routes
    mask = segment.mask
    if routes is not None:
        readers = routes.readers.reshape(-1)
        mask, positions = mask[readers], positions[readers]
    mask = mask.reshape(owners, 1, -1, 1, 1, mask.shape[-1])
    if window is None:
        return View(mask, routes, segment.lengths)
    queries = positions.reshape(owners, 1, -1, positions.shape[-1], 1, 1)
    places = segment.positions[:, None, None, None, None, :]
    return View(mask & (queries - places < window), routes)


def attend(
    queries: Float[Array, "R Q H h"],
    keys: Float[Array, "R K h Q"],
    values: Float[Array, "R K Q h"],
    positions: Int[Array, "R Q"],
    valid: Bool[Array, "R Q"],
    context: tuple[tuple[Any, View], ...],
    window: Int[Array, ""] | int | None = None,
    softcap: float | None = None,
) -> Float[Array, "R Q H h"]:
    """Grouped-query attention to a causal chunk and to any number of segments.

    Each segment is reduced separately, and the sums are merged with one normaliser.
    So shared segments are not repeated, and scores are not concatenated.

    Args:
        queries, keys, values: of the chunk. Queries and keys are rotated, and queries
            scaled.
        positions: of the chunk.
        valid: False at padding positions of the chunk.
        context: one layer of each :class:`Segment`, ``(keys, values)`` or a
            :class:`ByLayer`, and its view (:func:`view_segment`).
        window: how many positions a query attends to, its own included; None for all.
        softcap: scores s become ``softcap · tanh(s / softcap)``; None for no cap.
    """
    rows, length, _, width = queries.shape
    grouped = queries.reshape(rows, length, keys.shape[1], -1, width)
    causal = jnp.tril(jnp.ones((length, length), bool)) & valid[:, None, :]
    if window is not None:
        causal &= positions[:, :, None] - positions[:, None, :] < window
    own_view = View(causal[:, None, None, :, None, :])
    parts = [
        attend_part(grouped, keys, values, own_view, softcap),
        *(attend_to_cache(grouped, cached, view, softcap) for cached, view in context),
    ]
    _, total, mixed = merge(parts)
    return (mixed / total[..., None]).astype(queries.dtype).reshape(queries.shape)
