"""One kind of cache in blocks: tables on the host, bytes on the device."""

from typing import Any

import numpy as np

from tsi.engine.blocks import BlockTables, Indices
from tsi.engine.pages import Dense, Pages, more_pages, moves_of, no_pages
from tsi.engine.programs import Programs

LEAST = 64
"""Blocks by which a pool grows at least."""


class Pool:
    """Blocks of the caches of many rows.

    Args:
        programs: compiled ones.
        rows: how many.
        length: the most positions that a row can have.
        block: positions of a block.
        like: dense rows of this kind.
        most: bytes that are allocated at once.
    """

    def __init__(
        self,
        programs: Programs,
        rows: int,
        length: int,
        block: int,
        like: Dense,
        most: int,
    ) -> None:
        self.programs, self.block, self.like = programs, block, like
        self.tables = BlockTables(rows, length, block)
        _, heads, width, _ = like.keys[0].shape
        position = 2 * len(like.keys) * heads * width * like.keys[0].dtype.itemsize
        count = min(self.tables.table.size, most // max(1, position * block))
        self.pages: Pages = programs.place(no_pages(like, block, count))
        self.tables.grow(count)

    def store(
        self,
        dense: Dense,
        rows: Indices,
        kept: Indices,
        lengths: Indices,
        at: Indices | None = None,
    ) -> None:
        """Put what is new of rows into blocks.

        Args:
            dense: where they are now.
            rows: different ones.
            kept: how many of their first positions are as they were.
            lengths: how many positions they have now.
            at: the dense row of each; the first ones, if None.
        """
        missing = self.tables.missing(rows, kept, lengths)
        if missing:
            # By half, so that few sizes are compiled.
            more = max(missing, self.tables.uses.size // 2, LEAST)
            new = self.programs.place(no_pages(self.like, self.block, more))
            self.pages = more_pages(self.pages, new)
            self.tables.grow(more)
        copies = self.tables.extend(rows, kept, lengths)
        if at is not None:
            copies = copies._replace(rows=np.asarray(at)[copies.rows])
        if len(copies.rows):
            self.pages = self.programs.page_out(self.pages, dense, moves_of(copies))

    def load(self, dense: Dense, rows: Indices, at: Indices | None = None) -> Dense:
        """Copy whole rows out of blocks into dense rows, `at` which, or the first."""
        copies = self.tables.contents(rows)
        if at is not None:
            copies = copies._replace(rows=np.asarray(at)[copies.rows])
        if not len(copies.rows):
            return dense
        return self.programs.page_in(dense, self.pages, moves_of(copies))

    def fresh(self, rows: Indices, number: int, size: int) -> Any:
        """New dense rows of `size` positions, `number` of them, with these in front."""
        return self.load(self.programs.empty(self.like, number, size), rows)
