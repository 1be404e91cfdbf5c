"""Blocks of keys and values on the device, copied to and from dense rows.

Attention reads dense rows; what waits lies in blocks. A row is copied out of its blocks
when it starts a step and back into new ones when it ends it. Block after block is
copied in a loop with a dynamic count, so that it is no part of a program's shape.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.engine.blocks import Copies


class Pages(NamedTuple):
    """B blocks of s positions.

    Attributes:
        keys: ``[B, L, K, h, s]``, a block in one piece.
        values: ``[B, L, K, s, h]``.
    """

    keys: Float[Array, "B L K h s"]
    values: Float[Array, "B L K s h"]


class Dense(NamedTuple):
    """Rows in one piece, in the layout of :class:`tsi.models.layers.Segment`."""

    keys: Float[Array, "L R K h S"]
    values: Float[Array, "L R K S h"]


class Moves(NamedTuple):
    """:class:`tsi.engine.blocks.Copies` padded for the device; ``number`` are real."""

    rows: Any
    positions: Any
    blocks: Any
    number: Any


def moves_of(copies: Copies) -> Moves:
    """Copies as arguments of a program, in one of few widths."""
    count = len(copies.rows)
    width = 64
    while width < count:
        width *= 4
    rows, positions, blocks = (
        np.pad(x.astype(np.int32), (0, width - count)) for x in copies
    )
    return Moves(rows, positions, blocks, np.int32(count))


def no_pages(like: Dense, block: int, count: int = 0) -> Pages:
    """Blocks for rows such as these."""
    layers, _, heads, width, _ = like.keys.shape
    shape = (count, layers, heads)
    return Pages(
        jnp.zeros((*shape, width, block), like.keys.dtype),
        jnp.zeros((*shape, block, width), like.values.dtype),
    )


@jax.jit
def more_pages(pages: Pages, more: Pages) -> Pages:
    """Pages with more behind them."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pages, more)


def page_out(pages: Pages, rows: Dense, moves: Moves) -> Pages:
    """Copy blocks out of dense rows."""
    block = pages.keys.shape[-1]

    def copy(i: Any, pages: Pages) -> Pages:
        row, position, to = moves.rows[i], moves.positions[i], moves.blocks[i]
        keys = _piece(rows.keys, row, position, block, axis=4)
        values = _piece(rows.values, row, position, block, axis=3)
        update = jax.lax.dynamic_update_slice_in_dim
        return Pages(
            update(pages.keys, jnp.moveaxis(keys, 1, 0), to, axis=0),
            update(pages.values, jnp.moveaxis(values, 1, 0), to, axis=0),
        )

    return jax.lax.fori_loop(0, moves.number, copy, pages)


def page_in(rows: Dense, pages: Pages, moves: Moves) -> Dense:
    """Copy blocks into dense rows."""

    def copy(i: Any, rows: Dense) -> Dense:
        row, position, source = moves.rows[i], moves.positions[i], moves.blocks[i]
        keys, values = (
            jnp.moveaxis(jax.lax.dynamic_slice_in_dim(x, source, 1, axis=0), 0, 1)
            for x in pages
        )
        return Dense(
            _put(rows.keys, keys, row, position, axis=4),
            _put(rows.values, values, row, position, axis=3),
        )

    return jax.lax.fori_loop(0, moves.number, copy, rows)


def merge(
    rows: Dense,
    new: Dense,
    lengths: Int[Array, " R"],
    some: Int[Array, " R"],
    count: Int[Array, ""],
) -> Dense:
    """Put new keys and values behind what rows have, each at its own length.

    Args:
        rows: S positions; there must be room for all of the new ones.
        new: W positions.
        lengths: where the new ones go.
        some: rows, of which the first `count` get something.
    """

    def copy(i: Any, rows: Dense) -> Dense:
        row = some[i]
        keys, values = (jax.lax.dynamic_slice_in_dim(x, row, 1, axis=1) for x in new)
        return Dense(
            _put(rows.keys, keys, row, lengths[row], axis=4),
            _put(rows.values, values, row, lengths[row], axis=3),
        )

    return jax.lax.fori_loop(0, count, copy, rows)


def _piece(x: Array, row: Any, position: Any, size: int, axis: int) -> Array:
    start = _start(row, position, axis)
    sizes = list(x.shape)
    sizes[1], sizes[axis] = 1, size
    return jax.lax.dynamic_slice(x, start, sizes)


def _put(x: Array, piece: Array, row: Any, position: Any, axis: int) -> Array:
    start = _start(row, position, axis)
    return jax.lax.dynamic_update_slice(x, piece, start)


def _start(row: Any, position: Any, axis: int) -> list[Array]:
    start = [jnp.int32(0)] * 5
    # Under x64 some indices are int64, and all must be alike.
    start[1], start[axis] = (jnp.asarray(x, jnp.int32) for x in (row, position))
    return start
