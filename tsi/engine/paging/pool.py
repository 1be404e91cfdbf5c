"""One kind of cache in blocks: tables on the host, arrays on the device.

The arrays are extents of equal size. A pool grows by adding an extent, so nothing is
copied and no program that moves blocks is compiled again.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tsi.engine.meters.report import CacheBytes
from tsi.engine.paging.blocks import BlockTables, Copies, Indices
from tsi.engine.paging.page_programs import PagePrograms
from tsi.engine.paging.pages import Dense, Moves, Pages, moves_of


class Pool:
    """Blocks of the caches of many rows.

    Attributes:
        tables: which blocks each row has.

    Args:
        programs: compiled ones.
        rows: number of rows.
        length: the maximum number of positions that a row can have.
        block: positions of a block.
        like: dense rows of this kind of cache, for their shapes.
        max_bytes: bytes of an extent.
    """

    def __init__(
        self,
        programs: PagePrograms,
        rows: int,
        length: int,
        block: int,
        like: Dense,
        max_bytes: int,
    ) -> None:
        self.programs, self.block, self.like = programs, block, like
        self.tables = BlockTables(rows, length, block)
        bytes_of_block = max(1, block * bytes_of_position(like))
        self._extent = max(1, min(self.tables.table.size, max_bytes // bytes_of_block))
        self._extents: list[Pages] = []

    def store(
        self,
        dense: Dense,
        rows: Indices,
        num_kept: Indices,
        lengths: Indices,
        at: Indices | None = None,
        starts: Indices | None = None,
    ) -> None:
        """Copy the new positions of rows into blocks.

        Args:
            dense: dense rows that contain the new positions.
            rows: distinct rows.
            num_kept: number of first positions of each row that are unchanged.
            lengths: new number of positions of each row.
            at: index of the dense row of each; by default 0, 1, 2, ...
            starts: the position at which each dense row begins; 0, if None.
        """
        while self.tables.num_missing(rows, num_kept, lengths):
            pages = self.programs.empty_pages(self.like, self.block, self._extent)
            self._extents.append(pages)
            self.tables.grow(self._extent)
        copies = self.tables.extend(rows, num_kept, lengths)
        for i, moves in self._moves(copies, at, starts):
            pages = self._extents[i]
            self._extents[i] = self.programs.page_out(pages, dense, moves)

    def load(
        self,
        dense: Dense,
        rows: Indices,
        at: Indices | None = None,
        starts: Indices | None = None,
        since: Indices | None = None,
    ) -> Dense:
        """Copy rows out of blocks into dense rows.

        Args:
            dense: dense rows that are written.
            rows: the rows to copy.
            at: index of the dense row of each; by default 0, 1, 2, ...
            starts: the position at which each dense row begins; 0, if None.
            since: first position of each row that is copied; by default where its dense
                row begins.
        """
        copies = self.tables.contents(rows, starts if since is None else since)
        for i, moves in self._moves(copies, at, starts):
            dense = self.programs.page_in(dense, self._extents[i], moves)
        return dense

    def dense_rows_of(self, rows: Indices, number: int, size: int) -> Any:
        """`number` dense rows of `size` positions; the first ones contain `rows`."""
        return self.load(self.programs.make_zeros(self.like, number, size), rows)

    def _moves(
        self, copies: Copies, at: Indices | None, starts: Indices | None
    ) -> Iterator[tuple[int, Moves]]:
        """The copies of each extent, with blocks numbered within the extent."""
        if starts is not None:
            before = np.asarray(starts)[copies.rows]
            copies = copies._replace(positions=copies.positions - before)
        if at is not None:
            copies = copies._replace(rows=np.asarray(at)[copies.rows])
        extents = copies.blocks // self._extent
        for i in np.unique(extents).tolist():
            some = Copies(*(x[extents == i] for x in copies))
            some = some._replace(blocks=some.blocks - i * self._extent)
            yield from ((i, moves) for moves in moves_of(some))


def bytes_held(pools: Iterable[Pool]) -> CacheBytes:
    """Bytes in the blocks of some pools: read by several rows, and by one."""
    total = CacheBytes()
    for pool in pools:
        uses = pool.tables.uses
        size = pool.block * bytes_of_position(pool.like)
        counts = (uses > 1).sum(), (uses == 1).sum(), uses.sum()
        total = CacheBytes(
            *(a + size * int(b) for a, b in zip(total, counts, strict=True))
        )
    return total


def bytes_of_position(like: Dense) -> int:
    """Bytes of the keys and values of one position in all layers."""
    return sum(
        x.shape[1] * width * x.dtype.itemsize
        for x, width in (
            *((x, x.shape[2]) for x in like.keys),
            *((x, x.shape[3]) for x in like.values),
        )
    )
