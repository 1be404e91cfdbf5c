"""Host-side counts of a lane's problems and rows.

A lane, the loop over the problems of one group of devices, has P places, each for one
problem. A problem has W working rows, which take steps, and M stored rows, the prefixes
that an explorer stores. Row ``p * W + w`` is working row w of place p, and row ``P * W
+ p * M + m`` is its stored row m. Methods number the prefixes of one problem from 0:
for an explorer these are its stored rows, for a sampler its working rows.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.programs.row_replies import RowReplies
from tsi.explorer import Plan, Reply
from tsi.weights import weight_dtype


class Population:
    """Which problem is at each place, and the length of each row.

    Attributes:
        working: P * W.
        total: P * (W + M).
        index: the problem at each place, -1 for none, [P].
        waiting: number of working rows whose steps have not been read yet, [P].
        depths: number of steps of each row, [P * (W + M)].
        lengths: number of tokens of each working row, [P * W].
        reply: replies of the working rows for the next decision, [P * W] each.

    Args:
        places: P.
        plan: W, M and the turns of a problem.
        max_steps: the maximum number of steps of a row.
    """

    def __init__(self, places: int, plan: Plan, max_steps: int) -> None:
        self.places, self.plan, self.max_steps = places, plan, max_steps
        self.working = places * plan.rows
        self.total = places * (plan.rows + plan.stored)
        self.index = np.full(places, -1)
        self.waiting = np.zeros(places, np.int64)
        self.depths = np.zeros(self.total, np.int32)
        self.lengths = np.zeros(self.working, np.int32)

        def zeros(dtype: Any) -> Any:
            return np.zeros(self.working, dtype)

        number = weight_dtype()
        self.reply: Any = Reply(
            zeros(number), zeros(number), zeros(number), zeros(bool)
        )

    @property
    def occupancy(self) -> Bool[np.ndarray, " P"]:
        """Which places have a problem."""
        return self.index >= 0

    @property
    def is_ready(self) -> Bool[np.ndarray, " P"]:
        """Which problems have no step left to read, so that their samplers decide."""
        return self.occupancy & (self.waiting == 0)

    def is_in_work(self, rows: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Whether each working row belongs to a problem."""
        return self.index[self.places_of(rows)] >= 0

    def places_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The place of each working row."""
        return rows // self.plan.rows

    def rows_of(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """All rows of the problems at some places, working and stored ones."""
        rows, num_stored, _ = self.plan
        working = places[:, None] * rows + np.arange(rows)
        stored_rows = (
            self.working + places[:, None] * num_stored + np.arange(num_stored)
        )
        return np.concatenate([working, stored_rows], axis=1).reshape(-1)

    def working_rows(self, place: int) -> Int[np.ndarray, " W"]:
        """The working rows of a place."""
        return place * self.plan.rows + np.arange(self.plan.rows)

    def prefix_rows(
        self, places: int | Int[np.ndarray, "..."], numbers: Int[np.ndarray, "..."]
    ) -> Int[np.ndarray, "..."]:
        """The rows of prefixes, by place and by the method's number of the prefix."""
        if self.plan.stored:
            return self.working + places * self.plan.stored + numbers
        return places * self.plan.rows + numbers

    def reply_by_place(self) -> Reply:
        """The reply with a leading axis of places, [P, W] each."""
        return Reply(*(leaf.reshape(self.places, -1) for leaf in self.reply))

    def enter(self, problems: list[int], places: Int[np.ndarray, " n"]) -> None:
        """Put problems at free places, with rows that have no steps."""
        self.index[places] = problems
        self.depths[self.rows_of(places)] = 0

    def leave(self, places: Int[np.ndarray, " n"]) -> None:
        """Remove problems."""
        self.index[places], self.waiting[places] = -1, 0

    def keep(
        self, stored_rows: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]
    ) -> None:
        """Copy the numbers of working rows to stored rows."""
        self.depths[stored_rows] = self.depths[rows]

    def move(
        self,
        rows: Int[np.ndarray, " n"],
        parents: Int[np.ndarray, " n"],
        limit: Int[np.ndarray, " n"] | None,
        replies: RowReplies,
    ) -> None:
        """Give working rows the prefixes of their parents.

        Args:
            rows: working rows.
            parents: any rows.
            limit: the maximum number of steps of the parent that are kept; None for
                all.
            replies: the replies of these prefixes.
        """
        depths = self.depths[parents]
        self.depths[rows] = depths if limit is None else np.minimum(depths, limit)
        self.record(rows, replies)

    def start_turn(
        self, rows: Int[np.ndarray, " n"], extend: Bool[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Which rows take a step in the turn that begins.

        Args:
            rows: all working rows of some problems, in order.
            extend: whether the method requests a step of each row.
        """
        is_at_limit = self.depths[rows] >= self.max_steps
        active = extend & ~self.reply.finished[rows] & ~is_at_limit
        if self.plan.stored:
            self.reply.finished[rows] |= is_at_limit
        by_place = active.reshape(-1, self.plan.rows)
        self.waiting[rows[:: self.plan.rows] // self.plan.rows] = by_place.sum(1)
        return active

    def record(self, rows: Int[np.ndarray, " n"], replies: RowReplies) -> None:
        """Record the replies of working rows for the next decision."""
        for old, new in zip(self.reply, replies, strict=False):
            old[rows] = new
        self.lengths[rows] = replies.lengths

    def end_step(self, rows: Int[np.ndarray, " n"], replies: RowReplies) -> None:
        """Record that working rows have ended a step, which has been read."""
        self.record(rows, replies)
        self.depths[rows] += 1
        if self.plan.stored:
            self.reply.finished[rows] |= self.depths[rows] >= self.max_steps
        places = self.places_of(rows)
        # A problem that failed in the meantime does not wait for its rows.
        np.subtract.at(self.waiting, places[self.index[places] >= 0], 1)
