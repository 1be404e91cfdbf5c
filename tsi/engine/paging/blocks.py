"""Tables of the blocks that contain each row's cache, with counts, on the host.

A row's positions 0 to n - 1 lie in ceil(n / s) blocks of s positions. Rows share the
blocks of their common past, so that a fork copies one row of a table, and memory grows
with the genealogy. A row that writes into a shared block gets a copy of it first. That
is at most one block per row and step, the last block of its past.

The host decides which blocks are copied, since it knows all lengths;
:mod:`tsi.engine.paging.pages` copies them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

Indices = Sequence[int] | Int[np.ndarray, " n"]


class Copies(NamedTuple):
    """Blocks to be copied from or to dense rows, one entry each.

    Attributes:
        rows: index into the dense rows.
        positions: of the block's first entry in that row.
        blocks: in the pool.
    """

    rows: Int[np.ndarray, " c"]
    positions: Int[np.ndarray, " c"]
    blocks: Int[np.ndarray, " c"]


class BlockTables:
    """Blocks of R rows.

    Args:
        num_rows: R.
        length: the maximum number of positions that a row can have.
        block: s, positions of a block.
    """

    def __init__(self, num_rows: int, length: int, block: int) -> None:
        self.block = block
        self.table = np.full((num_rows, -(-length // block)), -1, np.int32)
        self.lengths = np.zeros(num_rows, np.int32)
        self.uses = np.zeros(0, np.int32)

    @property
    def num_used(self) -> int:
        """Blocks that some row reads."""
        return int(np.count_nonzero(self.uses))

    def fork(self, rows: Indices, parents: Indices) -> None:
        """Give each of `rows` the past of its parent, simultaneously."""
        rows, parents = np.asarray(rows), np.asarray(parents)
        is_moved = rows != parents
        rows, parents = rows[is_moved], parents[is_moved]
        new, lengths = self.table[parents], self.lengths[parents]
        self._count(new, 1)
        self._count(self.table[rows], -1)
        self.table[rows], self.lengths[rows] = new, lengths

    def cut(self, rows: Indices, lengths: Indices) -> None:
        """Forget all but the first `lengths` positions of rows."""
        rows = np.asarray(rows)
        left = np.minimum(self.lengths[rows], np.asarray(lengths))
        cut_mask = self._columns >= self._blocks_of(left)[:, None]
        held_blocks = self.table[rows]
        self._count(np.where(cut_mask, held_blocks, -1), -1)
        self.table[rows] = np.where(cut_mask, -1, held_blocks)
        self.lengths[rows] = left

    def release(self, rows: Indices) -> None:
        """Forget rows."""
        self.cut(rows, np.zeros(len(rows), np.int32))

    def num_missing(self, rows: Indices, num_kept: Indices, lengths: Indices) -> int:
        """How many more blocks :meth:`extend` needs than the pool has free."""
        _, is_needed, is_private = self._find_blocks(
            np.asarray(rows), num_kept, lengths
        )
        free = self.uses.size - self.num_used
        return max(0, int(np.count_nonzero(is_needed & ~is_private)) - free)

    def grow(self, blocks: int) -> None:
        """Add free blocks."""
        self.uses = np.concatenate([self.uses, np.zeros(blocks, np.int32)])

    def extend(self, rows: Indices, num_kept: Indices, lengths: Indices) -> Copies:
        """Allocate blocks for the new positions of rows.

        Args:
            rows: distinct rows.
            num_kept: number of first positions of each row that are unchanged.
            lengths: new number of positions of each row.

        Returns:
            The blocks of the new positions, to be copied out of dense rows.
        """
        rows = np.asarray(rows)
        held_blocks, is_needed, is_private = self._find_blocks(rows, num_kept, lengths)
        is_new = is_needed & ~is_private
        new_blocks = np.flatnonzero(self.uses == 0)[: np.count_nonzero(is_new)]
        is_past_end = self._columns >= self._blocks_of(np.asarray(lengths))[:, None]
        self._count(np.where(is_new | is_past_end, held_blocks, -1), -1)
        held_blocks = np.where(is_past_end, -1, held_blocks)
        held_blocks[is_new] = new_blocks
        self.uses[new_blocks] = 1
        self.table[rows], self.lengths[rows] = held_blocks, lengths
        at, columns = np.nonzero(is_needed)
        return Copies(at, columns * self.block, held_blocks[at, columns])

    def contents(self, rows: Indices, starts: Indices | None = None) -> Copies:
        """The blocks of rows, to be copied into dense ones.

        Args:
            rows: the rows.
            starts: first position of each row, a multiple of the block size; 0 if None.
        """
        held_blocks = self.table[np.asarray(rows)]
        copy_mask = held_blocks >= 0
        if starts is not None:
            copy_mask &= self._columns * self.block >= np.asarray(starts)[:, None]
        at, columns = np.nonzero(copy_mask)
        return Copies(at, columns * self.block, held_blocks[at, columns])

    def num_shared_positions(
        self, rows: Indices, others: Indices
    ) -> Int[np.ndarray, " n"]:
        """Number of positions that each row shares with another row in full blocks."""
        rows, others = np.asarray(rows), np.asarray(others)
        num_full = np.minimum(self.lengths[rows], self.lengths[others]) // self.block
        is_equal = self.table[rows] == self.table[others]
        num_equal = np.cumprod(is_equal, axis=1).sum(axis=1)
        return np.minimum(num_equal, num_full) * self.block

    @property
    def _columns(self) -> Int[np.ndarray, "1 b"]:
        return np.arange(self.table.shape[1])[None]

    def _blocks_of(self, lengths: np.ndarray) -> np.ndarray:
        return -(-lengths // self.block)

    def _find_blocks(
        self, rows: Int[np.ndarray, " n"], num_kept: Indices, lengths: Indices
    ) -> tuple[
        Int[np.ndarray, "n b"], Bool[np.ndarray, "n b"], Bool[np.ndarray, "n b"]
    ]:
        """Blocks of rows; which ones are written; which of the latter are private."""
        before, now = np.asarray(num_kept), np.asarray(lengths)
        first, last = before // self.block, self._blocks_of(now)
        last = np.where(now > before, last, 0)
        is_needed = (self._columns >= first[:, None]) & (self._columns < last[:, None])
        held_blocks = self.table[rows]
        is_private = is_needed & (held_blocks >= 0)
        is_private[is_private] = self.uses[held_blocks[is_private]] == 1
        return held_blocks, is_needed, is_private

    def _count(self, blocks: np.ndarray, change: int) -> None:
        np.add.at(self.uses, blocks[blocks >= 0], change)
