"""The reward's growing caches in blocks, and the dense rows that reading needs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from tsi.engine.paging.blocks import Indices
from tsi.engine.paging.pages import Dense
from tsi.engine.paging.pool import Pool
from tsi.engine.programs.model_programs import Programs
from tsi.engine.programs.rows import RewardCaches, RewardChange
from tsi.engine.sizing.sizes import coarse_room_of


class RewardPools:
    """One pool for each growing cache of a reward; no pool if it has none.

    Args:
        programs: compiled ones.
        rows: number of rows.
        lengths: the maximum number of positions that a row can have in each cache.
        block: positions of a block.
        like: dense rows of each kind.
        max_bytes: bytes of an extent.
    """

    def __init__(
        self,
        programs: Programs,
        rows: int,
        lengths: list[int],
        block: int,
        like: list[Dense],
        max_bytes: int,
    ) -> None:
        self._fixed = not programs.target.reward.reads_ids
        self._pools = [
            Pool(programs, rows, length, block, cache, max_bytes)
            for length, cache in zip(lengths, like, strict=True)
        ]

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools)

    def lengths(self, rows: Indices) -> list[Any]:
        """Positions of rows in each cache."""
        return [pool.tables.lengths[rows] for pool in self]

    def cut(self, rows: Indices, lengths: list[Any]) -> None:
        """Keep only the first positions of rows; the lengths of all rows are given."""
        for pool, length in zip(self, lengths, strict=True):
            pool.tables.cut(rows, length[rows])

    def caches_of(
        self, rows: Int[np.ndarray, " n"], size: int, width: int
    ) -> RewardCaches:
        """Dense rows with room for a step, padded to a number of rows.

        Args:
            rows: the rows.
            size: number of rows after padding.
            width: positions of the step.
        """
        dense, lengths = [], []
        for pool, num_held in zip(self, self.lengths(rows), strict=True):
            room = self._room(pool, int(num_held.max(initial=0)) + width)
            dense.append(pool.dense_rows_of(rows, size, room))
            lengths.append(np.pad(num_held, (0, size - len(rows))))
        return RewardCaches(dense, lengths)

    def store(
        self, caches: RewardCaches, rows: Int[np.ndarray, " n"], change: RewardChange
    ) -> None:
        """Copy the new positions of the first dense rows into blocks."""
        count = len(rows)
        for pool, dense, *lengths in zip(self, caches.dense, *change, strict=True):
            num_kept, new = (np.asarray(length)[:count] for length in lengths)
            pool.store(dense, rows, num_kept, new)

    def _room(self, pool: Pool, needed: int) -> int:
        full = pool.tables.table.shape[1] * pool.block
        return full if self._fixed else min(coarse_room_of(needed), full)
