"""The past that the rows of a problem share, stored contiguously once per problem.

All rows of a problem have the same prompt, and after some decisions they descend from
one row, so that their tables of blocks begin with the same blocks. These positions are
stored contiguously here, and attention reads them once for all rows; a slot holds only
the rest. A common past is also a row of the block tables, so that its blocks stay
allocated.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from tsi.engine.paging.pool import Pool
from tsi.engine.programs.model_programs import Programs
from tsi.engine.sizing.sizes import coarse_room_of


class Common:
    """Common pasts of P problems.

    Attributes:
        cache: :class:`tsi.engine.paging.pages.Dense`, one row per problem.

    Args:
        programs: compiled ones.
        pool: the policy's caches; its last P rows are the common pasts.
        problems: P.
        max_positions: the maximum number of positions that a past may have.
    """

    def __init__(
        self, programs: Programs, pool: Pool, problems: int, max_positions: int
    ) -> None:
        self.programs, self.pool, self.max_positions = programs, pool, max_positions
        self._first = pool.tables.lengths.size - problems
        self.size = min(coarse_room_of(1), max_positions)
        self.cache: Any = programs.make_zeros(pool.like, problems, self.size)

    def starts(
        self, rows: Int[np.ndarray, " n"], problems: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " n"]:
        """Number of positions that each row can read from the common past."""
        return self.pool.tables.num_shared_positions(rows, self._first + problems)

    def update(
        self, rows: list[Int[np.ndarray, " _w"]], problems: Int[np.ndarray, " n"]
    ) -> None:
        """Store the past that the rows of each problem share now.

        Args:
            rows: the rows of each problem, at least one.
            problems: the places of these problems.
        """
        tables, lines = self.pool.tables, self._first + problems
        first = np.asarray([members[0] for members in rows])
        lengths = [
            tables.num_shared_positions(
                members, np.full_like(members, members[0])
            ).min()
            for members in rows
        ]
        num_kept = np.minimum(tables.num_shared_positions(first, lines), lengths)
        tables.fork(lines, first)
        tables.cut(lines, np.asarray(lengths))
        self._make_room(int(max(lengths)))
        self.cache = self.pool.load(self.cache, lines, problems, since=num_kept)

    def release(self, problems: Int[np.ndarray, " n"]) -> None:
        """Release the pasts of problems that have ended."""
        self.pool.tables.release(self._first + problems)

    def _make_room(self, needed: int) -> None:
        if needed > self.size:
            self.size = min(coarse_room_of(needed), self.max_positions)
            self.cache = self.programs.widen(self.cache, self.size)
