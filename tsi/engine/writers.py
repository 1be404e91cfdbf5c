"""Management of the slots by the host: their rows, their order, and their size.

A row that continues its own prefix finds its cache in its former slot, if no other row
has used that slot since. The caches of other rows are copied out of blocks.
"""

import collections
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.common_past import Common
from tsi.engine.model_weights import ModelWeights
from tsi.engine.paging.pool import Pool
from tsi.engine.programs.model_programs import Programs
from tsi.engine.programs.slots import Chosen
from tsi.engine.sizing.shapes import ATTENDED, Shapes, cost_of_writing
from tsi.engine.sizing.sizes import (
    Sizes,
    coarse_room_of,
    num_slots_of,
    room_of,
    width_of,
)

LAG = 64
"""Number of positions of the common past that a slot may still contain itself. Loading
the row again takes longer than attending to this many positions twice."""

COPIES = 3
"""Cost of the programs for a new slot size, in bursts: a burst, a program that reads
steps, and several that copy."""


class Writers:
    """Slots of one lane.

    Attributes:
        row_of: the row in each slot, or the last row that was in it.
        active: whether tokens are drawn for this row.
        ended: whether this row has ended a step that has not been read yet.
        counts: number of tokens of its step.
        filled: number of positions of its past.
        start: number of first positions that are only in the common past.

    Args:
        programs: compiled ones.
        pool: the policy's caches.
        sizes: sizes of the lane.
        each: number of working rows per problem.
        max_positions: the maximum number of positions that a slot may need.
        weights: of the models, and temperatures.
    """

    def __init__(
        self,
        programs: Programs,
        pool: Pool,
        sizes: Sizes,
        each: int,
        max_positions: int,
        weights: ModelWeights,
    ) -> None:
        self.programs, self.pool = programs, pool
        self.sizes, self.each, self.max_positions = sizes, each, max_positions
        self.weights = weights
        self.common: Common | None = None
        if sizes.shares:
            self.common = Common(programs, pool, sizes.problems, max_positions)
        self.slots: Any = None
        number = sizes.slots
        self.row_of: Int[np.ndarray, " R"] = np.full(number, -1)
        self.active: Bool[np.ndarray, " R"] = np.zeros(number, bool)
        self.ended: Bool[np.ndarray, " R"] = np.zeros(number, bool)
        self.counts: Int[np.ndarray, " R"] = np.zeros(number, np.int32)
        self.filled: Int[np.ndarray, " R"] = np.zeros(number, np.int32)
        self.start: Int[np.ndarray, " R"] = np.zeros(number, np.int32)
        self.shapes = Shapes(cost_of_writing, sizes.price, exact=1)
        self.rooms = Shapes(lambda x: 1 + x[0] / ATTENDED, COPIES * sizes.price)
        self.min_slots, self.needed_positions, self.idle = 0, 0, 0.0
        self.resident: dict[int, int] = {}
        self.useful = self.computed = self.bursts = 0

    @property
    def number(self) -> int:
        """The number of slots, R."""
        return len(self.row_of)

    @property
    def common_cache(self) -> Any:
        """The cache of common pasts, or None."""
        return None if self.common is None else self.common.cache

    def forget(self, rows: Int[np.ndarray, " n"]) -> None:
        """Mark the slots' caches of these rows as invalid."""
        for row in rows.tolist():
            self.resident.pop(row, None)

    def release(self, problems: Int[np.ndarray, " n"]) -> None:
        """Release the common pasts of problems that have left."""
        if self.common is not None:
            self.common.release(problems)

    def drop(self, rows: Int[np.ndarray, " n"]) -> None:
        """Remove rows from their slots before their steps have ended."""
        drop_mask = np.isin(self.row_of, rows)
        self.active &= ~drop_mask
        self.ended &= ~drop_mask

    def share(self, rows: Int[np.ndarray, " n"]) -> None:
        """Update the common past of the rows of each problem.

        Args:
            rows: the rows that will be extended, in order.
        """
        if self.common is None or not len(rows):
            return
        problems, first_rows = np.unique(rows // self.each, return_index=True)
        self.common.update(np.split(rows, first_rows[1:]), problems)

    def fill(self, queue: collections.deque[int]) -> Int[np.ndarray, " n"]:
        """Move rows from the queue into free slots, with their caches."""
        self._resize(queue)
        free_slots = set(np.flatnonzero(~self.active & ~self.ended).tolist())
        count = min(len(free_slots), len(queue))
        rows = np.asarray([queue.popleft() for _ in range(count)], np.int32)
        start = self._starts(rows)
        at = np.full(count, -1, np.int32)
        for i, row in enumerate(rows.tolist()):
            slot = self.resident.get(row)
            # Positions that are not in the slot must still be in the common past.
            if slot in free_slots and 0 <= start[i] - self.start[slot] < LAG:
                at[i] = slot
                free_slots.discard(slot)
        is_loaded = at < 0
        # Slots whose caches no row can reuse are taken first.
        resident_slots = set(self.resident.values())
        order = sorted(free_slots, key=lambda slot: (slot in resident_slots, slot))
        at[is_loaded] = order[: int(is_loaded.sum())]
        loaded_slots = set(at[is_loaded].tolist())
        self.resident = {
            r: s for r, s in self.resident.items() if s not in loaded_slots
        }
        cache = self.pool.load(
            self.slots.cache, rows[is_loaded], at[is_loaded], starts=start[is_loaded]
        )
        self.slots = self.slots._replace(cache=cache)
        self.row_of[at], self.active[at] = rows, True
        self.filled[at] = self.pool.tables.lengths[rows]
        self.start[at[is_loaded]] = start[is_loaded]
        self.at = at
        return rows

    def admit(self, rows: Any, stored: Any, padded: Any, *keys: Any) -> None:
        """Activate the rows that `fill` has placed; arguments of `Programs.admit`."""
        pad = (0, len(padded) - len(rows))
        cache = self.slots.cache
        new_slots = self.programs.admit(
            self.slots._replace(cache=()),
            np.pad(self.at, pad, constant_values=self.number),
            stored,
            padded,
            np.pad(self.start[self.at], pad),
            np.pad(self.filled[self.at], pad),
            *keys,
            self.weights.params,
        )
        self.slots = new_slots._replace(cache=cache)

    def write(self, min_ended: int) -> None:
        """Run one burst."""
        old_filled, cache, chosen_slots = self.filled, self.slots.cache, self._choose()
        # Rows of abandoned problems are still active on the device.
        self.slots = self.slots._replace(active=self.active)
        new_slots, new, status = self.programs.burst(
            self.weights.params,
            self.slots,
            self.common_cache,
            chosen_slots,
            np.int32(min_ended),
            self.sizes.burst,
        )
        rows = np.arange(self.number) if chosen_slots is None else chosen_slots.rows
        cache = self.programs.append_burst(
            cache,
            new,
            rows.astype(np.int32),
            (old_filled - self.start)[rows],
            self.active[rows],
        )
        self.slots = new_slots._replace(cache=cache)
        status = self.programs.fetch(status)
        self.filled = np.where(self.active, status.filled, old_filled).astype(np.int32)
        self.bursts += 1
        turns = int(status.turns)
        self.computed += turns * len(rows)
        self._record_waste(turns, len(rows))
        self.useful += int((self.filled - old_filled).sum())
        self.ended |= self.active & ~status.active
        self.active, self.counts = self.active & status.active, status.counts

    def leave(self, at: Int[np.ndarray, " A"]) -> Int[np.ndarray, " A"]:
        """Rows leave their slots, whose caches stay valid until they are taken."""
        rows = self.row_of[at]
        self.ended[at] = False
        self.resident |= zip(rows.tolist(), at.tolist(), strict=True)
        return rows

    def _starts(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        if self.common is None:
            return np.zeros(len(rows), np.int32)
        return self.common.starts(rows, rows // self.each).astype(np.int32)

    def _choose(self) -> Any:
        """Choose the slots that a burst computes: the active ones, and padding."""
        number, each, shrinks = self.number, self.each, self.sizes.shrinks
        self.min_slots = num_slots_of(int(self.active.sum()), number, shrinks)
        coarse = width_of(self.min_slots, number, shrinks, factor=2)
        _, size = self.shapes.choose((self.room, self.min_slots), (self.room, coarse))
        if size == number and self.common is None:
            return None
        first = np.argsort(~self.active, kind="stable")[:size]
        rows: Any = np.sort(first).astype(np.int32)
        if self.common is None:
            return Chosen(rows, None, None)
        # The rank of each active row among the active rows of its problem.
        active = np.flatnonzero(self.active[rows])
        problems = self.row_of[rows[active]] // each
        order = np.argsort(problems, kind="stable")
        active, problems = active[order], problems[order]
        rank = np.arange(len(active)) - np.searchsorted(problems, problems)
        width = width_of(int(rank.max(initial=0)) + 1, each, True, factor=2)
        readers: Any = np.zeros((self.sizes.problems, width), np.int32)
        places: Any = np.zeros(size, np.int32)
        readers[problems, rank] = active
        places[active] = problems * width + rank
        return Chosen(rows, readers, places)

    @property
    def room(self) -> int:
        """The number of positions of a slot, S."""
        return self.slots.cache.keys[0].shape[-1]

    def largest_size_below(self, count: int) -> int:
        """Maximum number of rows of a known smaller program; 0 if there is none."""
        sizes = [size for room, size in self.shapes.known if room == self.room]
        return max((size for size in sizes if size < count), default=0)

    def _record_waste(self, turns: int, rows: int) -> None:
        """Record how much of a burst smaller programs would have saved."""
        if not self.sizes.shrinks:
            return
        self.shapes.record_waste((self.room, self.min_slots), (self.room, rows), turns)
        waste = self.rooms.record_waste(
            (self.needed_positions,), (self.room,), turns * rows
        )
        self.idle += waste

    def _resize(self, queue: collections.deque[int]) -> None:
        """Resize the slots for the rows that will use them."""
        is_busy = self.active | self.ended
        longest = int((self.filled - self.start)[is_busy].max(initial=0))
        waiting = np.asarray(list(queue)[: self.sizes.slots], np.int32)
        lengths = self.pool.tables.lengths[waiting] - self._starts(waiting)
        longest = max(longest, int(lengths.max(initial=0)))
        if self.common is not None:
            longest += LAG
        needed = longest + self.sizes.burst
        self.needed_positions = min(room_of(needed), self.max_positions)
        if self.slots is not None:
            # Slots shrink only after their size has cost as much as a resize.
            is_near_limit = self.room < 4 * self.needed_positions
            keeps = is_near_limit and self.idle <= self.sizes.price
            if keeps and self.room >= self.needed_positions:
                return
        coarse = self.needed_positions
        if self.sizes.shrinks:
            coarse = coarse_room_of(needed)
        (size,) = self.rooms.choose(
            (self.needed_positions,), (min(coarse, self.max_positions),)
        )
        self.idle = 0.0
        if self.slots is None:
            has_penalty = self.weights.settings.repetition_penalty is not None
            vocab_size = self.weights.policy_config.vocab_size if has_penalty else None
            template, number = self.pool.like, self.number
            self.slots = self.programs.slots(template, number, size, vocab_size)
        elif size != self.room:
            if size < self.room:
                # Caches that rows may still reuse can be longer than the new size.
                self.resident = {}
            cache = self.programs.widen(self.slots.cache, size)
            self.slots = self.slots._replace(cache=cache)
