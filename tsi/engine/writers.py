"""The host's view of the slots: who is in which, who comes next, when they change size.

A row that goes on from where it stood finds its cache in the slot that it left, if
nobody has taken it since; others are copied out of blocks.
"""

import collections
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.pool import Pool
from tsi.engine.programs import Programs
from tsi.engine.sizes import Sizes, room_of, width_of


class Writers:
    """Slots of one lane.

    Args:
        programs: compiled ones.
        pool: the policy's caches.
        sizes: how much is worked on at once.
        most: the most positions that a slot may need.
    """

    def __init__(self, programs: Programs, pool: Pool, sizes: Sizes, most: int) -> None:
        self.programs, self.pool = programs, pool
        self.sizes, self.most = sizes, most
        self.slots: Any = None
        self.row_of: Int[np.ndarray, " R"] = np.full(0, -1)
        self.active: Bool[np.ndarray, " R"] = np.zeros(0, bool)
        self.filled: Int[np.ndarray, " R"] = np.zeros(0, np.int32)
        self.resident: dict[int, int] = {}
        self.useful = self.computed = self.bursts = 0

    @property
    def number(self) -> int:
        """R, which changes with what there is to do."""
        return len(self.row_of)

    def forget(self, rows: Int[np.ndarray, " n"]) -> None:
        """What slots hold of these rows is theirs no more."""
        for row in rows.tolist():
            self.resident.pop(row, None)

    def fill(self, queue: collections.deque[int]) -> Int[np.ndarray, " n"]:
        """Give rows of the queue the slots that are free, and their caches."""
        self._resize(queue)
        free = set(np.flatnonzero(~self.active).tolist())
        count = min(len(free), len(queue))
        rows = np.asarray([queue.popleft() for _ in range(count)], np.int32)
        at = np.full(count, -1, np.int32)
        for i, row in enumerate(rows.tolist()):
            slot = self.resident.get(row)
            if slot is not None and slot in free:
                at[i] = slot
                free.discard(slot)
        loaded = at < 0
        # First the slots that nobody may come back to.
        held = set(self.resident.values())
        order = sorted(free, key=lambda slot: (slot in held, slot))
        at[loaded] = order[: int(loaded.sum())]
        taken = set(at[loaded].tolist())
        self.resident = {r: s for r, s in self.resident.items() if s not in taken}
        cache = self.pool.load(self.slots.cache, rows[loaded], at[loaded])
        self.slots = self.slots._replace(cache=cache)
        self.row_of[at], self.active[at] = rows, True
        self.filled[at] = self.pool.tables.lengths[rows]
        self.at = at
        return rows

    def admit(self, rows: Any, stored: Any, padded: Any, *keys: Any) -> None:
        """Let the rows that `fill` has placed write; arguments of `Programs.admit`."""
        pad = (0, len(padded) - len(rows))
        cache = self.slots.cache
        small = self.programs.admit(
            self.slots._replace(cache=()),
            np.pad(self.at, pad, constant_values=self.number),
            stored,
            padded,
            np.pad(self.filled[self.at], pad),
            *keys,
        )
        self.slots = small._replace(cache=cache)

    def write(self, params: Any, enough: int) -> tuple[Any, Any]:
        """One burst.

        Returns:
            The slots whose rows have ended their steps, and all slots' tokens.
        """
        was = self.filled
        cache = self.slots.cache
        small, new, seen = self.programs.burst(
            params, self.slots, np.int32(enough), self.sizes.burst
        )
        cache = self.programs.behind(cache, new, was, self.active)
        self.slots = small._replace(cache=cache)
        seen = jax.device_get(seen)
        self.filled = np.where(self.active, seen.filled, was).astype(np.int32)
        self.bursts += 1
        self.computed += int(seen.turns) * self.number
        self.useful += int((self.filled - was).sum())
        ended = np.flatnonzero(self.active & ~seen.active)
        self.active = self.active & seen.active
        return ended, seen.counts

    def leave(self, at: Int[np.ndarray, " A"]) -> Int[np.ndarray, " A"]:
        """Rows leave their slots, which keep what they hold until somebody comes."""
        rows = self.row_of[at]
        self.resident |= zip(rows.tolist(), at.tolist(), strict=True)
        return rows

    def _resize(self, queue: collections.deque[int]) -> None:
        """As many slots as there are rows for, with room for what they may become."""
        longest = int(self.filled[self.active].max(initial=0))
        waiting = list(queue)[: self.sizes.slots]
        longest = max(longest, self.pool.tables.lengths[waiting].max(initial=0))
        size = min(room_of(int(longest) + self.sizes.burst), self.most)
        wanted = min(int(self.active.sum()) + len(queue), self.sizes.slots)
        shrinks = self.sizes.shrinks
        number = width_of(wanted, self.sizes.slots, shrinks, factor=2)
        if self.slots is None:
            self.slots = self.programs.slots(self.pool.like, number, size)
            self.row_of = np.full(number, -1)
            self.active = np.zeros(number, bool)
            self.filled = np.zeros(number, np.int32)
            return
        old, room = self.number, self.slots.cache.keys[0].shape[-1]
        if number == old and size <= room < 4 * size:
            return
        order = np.concatenate(
            [
                np.flatnonzero(self.active),
                np.flatnonzero(~self.active),
                np.zeros(max(0, number - old), int),
            ]
        )[:number].astype(np.int32)
        self.slots = self.programs.resize(self.slots, order, size)
        writing = np.arange(number) < self.active.sum()
        self.row_of = np.where(writing, self.row_of[order], -1)
        self.filled = np.where(writing, self.filled[order], 0).astype(np.int32)
        self.active, self.resident = writing, {}
