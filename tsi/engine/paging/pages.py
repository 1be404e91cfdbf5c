"""Blocks of keys and values on the device, copied to and from dense rows.

Attention reads dense rows; waiting rows are stored in blocks. A row is copied out of
its blocks when it starts a step, and into new blocks when it ends the step. The blocks
are copied in a loop with a dynamic count, so that the count is not part of a program's
shape.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.engine.paging.blocks import Copies


class Pages(NamedTuple):
    """B blocks of s positions.

    Attributes:
        keys: ``[B, L, K, h, s]``, so that a block is contiguous.
        values: ``[B, L, K, s, h]``.
    """

    keys: Float[Array, "B L K h s"]
    values: Float[Array, "B L K s h"]


class Dense(NamedTuple):
    """Contiguous rows, in the layout of :class:`tsi.models.attention.Segment`.

    Attributes:
        keys: of each layer, ``[R, K, h, S]``.
        values: of each layer, ``[R, K, S, h]``.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]


def layers_of(keys: Any, values: Any) -> Dense:
    """Dense rows of arrays with a leading axis of layers."""
    return Dense(*(tuple(x[i] for i in range(x.shape[0])) for x in (keys, values)))


class Moves(NamedTuple):
    """:class:`tsi.engine.paging.blocks.Copies` padded for the device; ``number`` are
    real."""

    rows: Any
    positions: Any
    blocks: Any
    number: Any


MOVES = 1024
"""The maximum number of blocks that one call moves; a single number, so that one
program is compiled."""


def moves_of(copies: Copies) -> Iterator[Moves]:
    """Copies in the form that programs take."""
    for start in range(0, len(copies.rows), MOVES):
        some = (x[start : start + MOVES].astype(np.int32) for x in copies)
        count = min(MOVES, len(copies.rows) - start)
        rows, positions, blocks = (np.pad(x, (0, MOVES - count)) for x in some)
        yield Moves(rows, positions, blocks, np.int32(count))


def empty_pages(like: Dense, block: int, count: int = 0) -> Pages:
    """Empty blocks for rows of these shapes."""
    _, heads, width, _ = like.keys[0].shape
    shape = (count, len(like.keys), heads)
    return Pages(
        jnp.zeros((*shape, width, block), like.keys[0].dtype),
        jnp.zeros((*shape, block, width), like.values[0].dtype),
    )


def page_out(pages: Pages, rows: Dense, moves: Moves) -> Pages:
    """Copy blocks out of dense rows."""
    block = pages.keys.shape[-1]

    def copy(i: Any, pages: Pages) -> Pages:
        row, position, to = moves.rows[i], moves.positions[i], moves.blocks[i]
        keys = [_piece(x, row, position, block, axis=3) for x in rows.keys]
        values = [_piece(x, row, position, block, axis=2) for x in rows.values]
        update = jax.lax.dynamic_update_slice_in_dim
        return Pages(
            update(pages.keys, jnp.stack(keys, axis=1), to, axis=0),
            update(pages.values, jnp.stack(values, axis=1), to, axis=0),
        )

    return jax.lax.fori_loop(0, moves.number, copy, pages)


def page_in(rows: Dense, pages: Pages, moves: Moves) -> Dense:
    """Copy blocks into dense rows."""

    def copy(i: Any, rows: Dense) -> Dense:
        row, position, source = moves.rows[i], moves.positions[i], moves.blocks[i]
        keys, values = (
            jax.lax.dynamic_slice_in_dim(x, source, 1, axis=0) for x in pages
        )
        return _put_all(
            rows,
            layers_of(*(jnp.moveaxis(x, 1, 0) for x in (keys, values))),
            row,
            position,
        )

    return jax.lax.fori_loop(0, moves.number, copy, rows)


def merge(
    rows: Dense,
    new: Dense,
    at: Int[Array, " r"],
    positions: Int[Array, " r"],
    some: Int[Array, " r"],
    count: Int[Array, ""],
) -> Dense:
    """Put new keys and values into rows, each row at its own position.

    Args:
        rows: dense rows of S positions, with room for all new ones.
        new: keys and values of W positions of r rows.
        at: index in `rows` of each of the r rows.
        positions: the position at which each of the r rows is written.
        some: an order of the r rows, of which the first `count` are written.
    """

    def copy(i: Any, rows: Dense) -> Dense:
        row = some[i]
        piece = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, axis=0), new
        )
        return _put_all(rows, piece, at[row], positions[row])

    return jax.lax.fori_loop(0, count, copy, rows)


def resize(cache: Dense, size: int) -> Dense:
    """The same rows with space for another number of positions."""
    keep = min(cache.keys[0].shape[-1], size)
    grow, none = (0, size - keep), (0, 0)
    return Dense(
        tuple(jnp.pad(x[..., :keep], [none, none, none, grow]) for x in cache.keys),
        tuple(jnp.pad(x[:, :, :keep], [none, none, grow, none]) for x in cache.values),
    )


def _piece(x: Array, row: Any, position: Any, size: int, axis: int) -> Array:
    sizes = list(x.shape)
    sizes[0], sizes[axis] = 1, size
    return jax.lax.dynamic_slice(x, _start(row, position, axis), sizes)


def _put_all(rows: Dense, piece: Dense, row: Any, position: Any) -> Dense:
    """Write a piece into one row at a position, in every layer."""
    put = jax.lax.dynamic_update_slice
    return Dense(
        tuple(
            put(x, new, _start(row, position, 3))
            for x, new in zip(rows.keys, piece.keys, strict=True)
        ),
        tuple(
            put(x, new, _start(row, position, 2))
            for x, new in zip(rows.values, piece.values, strict=True)
        ),
    )


def _start(row: Any, position: Any, axis: int) -> list[Array]:
    start = [jnp.int32(0)] * 4
    # Under x64 some indices are int64, and all must have the same type.
    start[0], start[axis] = (jnp.asarray(x, jnp.int32) for x in (row, position))
    return start
