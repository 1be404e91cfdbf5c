"""Data of a lane's rows on a group of devices, and how rows get other prefixes.

Numbers and tokens of all rows are in one pytree (:mod:`tsi.engine.programs.rows`), keys
and values are in blocks (:mod:`tsi.engine.paging.pool`). A row that gets another prefix
copies the numbers of that prefix and shares its blocks.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from tsi.engine.meters.report import CacheBytes
from tsi.engine.model_weights import ModelWeights
from tsi.engine.paging.blocks import Indices
from tsi.engine.paging.pool import Pool, bytes_held
from tsi.engine.programs.model_programs import Programs
from tsi.engine.programs.row_replies import RowReplies
from tsi.engine.programs.rows import empty_stored
from tsi.engine.prompt_reader import PromptBatch
from tsi.engine.reward_pools import RewardPools
from tsi.engine.sizing.sizes import Sizes
from tsi.engine.text_readings import TextReadings
from tsi.explorer import Plan

POOL = 2**28
"""Bytes of blocks per allocation; more are allocated when needed."""


class RowStore:
    """The rows of P problems: all working rows (W each), then all stored ones (M each).

    Memory is allocated after the first prompts have been read, since these give the
    shapes.

    Attributes:
        stored: :class:`tsi.engine.programs.rows.Stored`.
        policy: the policy's keys and values.
        readers: the reward's caches: pools, or a reward model that reads text.

    Args:
        programs: the compiled programs.
        weights: of the models, and temperatures.
        sizes: of the lane.
        plan: W and M.
        longest: the maximum number of positions of a row, prompt included.
        readings: of a reward model that reads text; None for other rewards.
    """

    def __init__(
        self,
        programs: Programs,
        weights: ModelWeights,
        sizes: Sizes,
        plan: Plan,
        longest: int,
        readings: TextReadings | None,
    ) -> None:
        self.programs, self.weights, self.sizes = programs, weights, sizes
        self.each, self.longest = plan.rows, longest
        self.working = sizes.problems * plan.rows
        self.total = sizes.problems * (plan.rows + plan.stored)
        self.stored: Any = None
        self.policy: Any = None
        self.readers: Any = readings
        # Positions of the policy's cache that each problem's prompt fills.
        self._prompt_lengths = np.zeros(sizes.problems, np.int32)
        self._entered: list[tuple[Any, ...]] = []

    @property
    def pools(self) -> list[Pool]:
        """The caches of policy and reward."""
        return [self.policy, *self.readers]

    def cache_bytes(self) -> CacheBytes:
        """Bytes of keys and values in blocks."""
        return bytes_held(self.pools)

    def enter(self, batch: PromptBatch, rows: Int[np.ndarray, " n"]) -> None:
        """Give the rows of problems their prompts.

        Args:
            batch: prompts that have been read.
            rows: all rows of these problems, in their order.
        """
        if self.stored is None:
            self._allocate(batch)
        dense, particles, reward, shared, _ = batch.prefill
        count, size = batch.number, len(batch.problems)
        each = len(rows) // count
        origin = np.repeat(np.arange(count), each)
        pad = (0, size * each - len(rows))
        self.stored = self.programs.enter(
            self.stored,
            (batch.prompts, particles, reward, shared),
            np.pad(rows, pad, constant_values=self.total),
            np.pad(origin, pad),
            batch.places,
        )
        first = rows.reshape(count, each)[:, 0]
        # The last token of a prompt is read together with the first step.
        lengths = np.asarray(batch.prompts.lengths)[:count] - 1
        self._prompt_lengths[batch.places[:count]] = lengths
        self.policy.store(dense, first, np.zeros(count, np.int32), lengths)
        self.policy.tables.fork(rows, np.repeat(first, each))
        if isinstance(self.readers, TextReadings):
            self._entered.append((batch.problems, batch.places, rows, origin))

    def read_questions(self) -> None:
        """Let a reward model that reads text read the prompts of what has entered.

        It comes after all batches of the policy, since its weights may be offloaded.
        """
        entered, self._entered = self._entered, []
        for arguments in entered:
            assert isinstance(self.readers, TextReadings)
            self.readers.enter(*arguments)

    def _allocate(self, batch: PromptBatch) -> None:
        dense, particles, reward, shared, like = batch.prefill
        problems, block = self.sizes.problems, self.sizes.block
        stored = empty_stored(
            particles,
            reward,
            shared,
            batch.prompts,
            rows=self.total,
            working=self.working,
            problems=problems,
        )
        self.stored = self.programs.place(stored)
        max_bytes = POOL // (1 + len(like))
        # A common past is a row of the policy's tables as well.
        rows = self.total + (problems if self.sizes.shares else 0)
        self.policy = Pool(self.programs, rows, self.longest, block, dense, max_bytes)
        if self.readers is None:
            lengths = [x.shape[1] for x in self.programs.positions(self.stored)]
            self.readers = RewardPools(
                self.programs, self.total, lengths, block, like, max_bytes
            )

    def keep(
        self, stored_rows: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]
    ) -> None:
        """Overwrite stored rows with copies of working rows.

        Args:
            stored_rows: rows that are overwritten.
            rows: the working row that is copied to each.
        """
        to = np.full(self.working, self.total)
        to[rows] = stored_rows
        self.stored = self.programs.keep(self.stored, to, np.arange(self.working))
        self._fork(stored_rows, rows)

    def arrange(
        self,
        rows: Int[np.ndarray, " n"],
        parents: Int[np.ndarray, " n"],
        limit: Int[np.ndarray, " n"] | None,
    ) -> RowReplies:
        """Give working rows the prefixes of their parents, cut back.

        Args:
            rows: working rows.
            parents: any rows.
            limit: the maximum number of steps of the parent that are kept; None for
                all.

        Returns:
            The replies of these prefixes.
        """
        working = np.arange(self.working)
        slots = np.full(self.working, self.total, np.int32)
        sources = working.astype(np.int32)
        slots[rows], sources[rows] = rows, parents
        depths = None
        if limit is not None:
            depths = np.zeros(self.working, np.int32)
            depths[rows] = limit
        self.stored, replies, lengths = self.programs.arrange(
            self.stored,
            slots,
            sources,
            depths,
            self.readers.lengths(sources),
            working // self.each,
            self.weights.params,
        )
        replies, lengths = self.programs.fetch((replies, lengths))
        replies = jax.tree.map(lambda leaf: leaf[rows], replies)
        self._fork(rows, parents)
        if limit is not None:
            prompt = self._prompt_lengths[rows // self.each]
            self.policy.tables.cut(rows, prompt + replies.lengths)
            self.readers.cut(rows, lengths)
        return replies

    def release(self, rows: Indices) -> None:
        """Release the blocks of rows."""
        for pool in self.pools:
            pool.tables.release(rows)

    def _fork(self, rows: Indices, parents: Indices) -> None:
        for pool in self.pools:
            pool.tables.fork(rows, parents)
