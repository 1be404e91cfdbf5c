"""Run a reward model that reads text, between the programs of the policy.

The host renders and encodes the solutions of a batch of rows, and starts a program that
reads the new ids. It fetches the results after all batches have been started, so that
the device reads one batch while the host renders the next.

For each row the device stores only keys and values, in blocks. Everything else is in
the row's transcript on the host (:mod:`tsi.rewards.transcripts`), which is forked and
released with the row's blocks.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from tsi.engine.host_scores import Batch, ScoredBatch, put_scores
from tsi.engine.model_weights import ModelWeights
from tsi.engine.paging.blocks import BlockTables, Indices
from tsi.engine.paging.pool import Pool
from tsi.engine.programs.model_programs import Programs
from tsi.engine.programs.row_replies import Solutions
from tsi.engine.programs.rows import RewardCaches, RewardChange, Stored
from tsi.engine.programs.text_programs import TextPrograms, dense_like, take_questions
from tsi.engine.sizing.shapes import Shapes, cost_of_reading
from tsi.engine.sizing.sizes import Sizes, coarse_room_of, room_of, width_of
from tsi.rewards.reader_questions import Questions
from tsi.rewards.reader_state import RenderedRows
from tsi.rewards.transcripts import (
    Continuation,
    Transcript,
    begin_transcript,
    continue_transcript,
)
from tsi.weights import weight_dtype

LEAST = 16
"""The minimum number of ids per pass, so that few widths are compiled."""


class TranscriptTables(BlockTables):
    """Block tables of rows, and the transcript of each row."""

    def __init__(self, num_rows: int, length: int, block: int) -> None:
        super().__init__(num_rows, length, block)
        self.transcripts: Any = np.full(num_rows, None, object)

    def fork(self, rows: Indices, parents: Indices) -> None:
        """See :class:`tsi.engine.paging.blocks.BlockTables`."""
        super().fork(rows, parents)
        self.transcripts[np.asarray(rows)] = self.transcripts[np.asarray(parents)]

    def release(self, rows: Indices) -> None:
        """See :class:`tsi.engine.paging.blocks.BlockTables`."""
        super().release(rows)
        self.transcripts[np.asarray(rows)] = None


class PendingReading(NamedTuple):
    """A batch whose results have not been fetched yet.

    Attributes:
        batch: rows of the batch.
        read: indices of the rows that are read.
        nowhere: indices of the rows that are not read, since their text is too long.
        continued: transcripts of the rows that are read.
        numbers: log-odds and values of these rows, on the device.
    """

    batch: Batch
    read: list[int]
    nowhere: list[int]
    continued: list[Continuation]
    numbers: Any


class TextReadings:
    """Readings of the rows of one lane.

    Args:
        policy: the policy's programs, which have the rows.
        programs: the reward model's programs.
        weights: of both models.
        questions: questions of all problems, on the host.
        rows: number of rows.
        sizes: sizes of the lane.
        max_bytes: bytes of an extent.

    Raises:
        ConfigurationError: the questions were not prepared, or the reward's longest
            text exceeds the model's context.
    """

    def __init__(
        self,
        policy: Programs,
        programs: TextPrograms,
        weights: ModelWeights,
        questions: Any,
        rows: int,
        sizes: Sizes,
        max_bytes: int,
    ) -> None:
        self.policy, self.programs, self.reader = policy, programs, programs.reader
        self.reader.check(questions, weights.reward_config)
        programs.set_home(weights.reward_location)
        self.weights, self.sizes = weights, sizes
        self.shapes = Shapes(cost_of_reading, sizes.price, exact=1)
        self.questions: Questions = questions
        self._rows, self._max_bytes = rows, max_bytes
        self._pool: Any = None
        self._prompts: Any = None
        self._pending: list[PendingReading] = []

    def __iter__(self) -> Iterator[Pool]:
        return iter(() if self._pool is None else (self._pool,))

    # The interface of RewardPools; the policy's programs hold no caches of this reward.

    def lengths(self, rows: Indices) -> list[Any]:
        """Lengths of the reward's caches: none."""
        return []

    def cut(self, rows: Indices, lengths: list[Any]) -> None:
        """Do nothing: rows are cut when they are next rendered."""

    def caches_of(self, rows: Indices, size: int, width: int) -> RewardCaches:
        """No caches."""
        return RewardCaches([], [])

    def store(self, caches: RewardCaches, rows: Indices, change: RewardChange) -> None:
        """Do nothing: no caches were read."""

    # Readings

    def enter(
        self,
        problems: Int[np.ndarray, " E"],
        places: Int[np.ndarray, " E"],
        rows: Int[np.ndarray, " n"],
        origin: Int[np.ndarray, " n"],
    ) -> None:
        """Read the prompts of problems.

        Args:
            problems: indices of the problems.
            places: place of each; an index out of range marks padding.
            rows: all rows of these problems.
            origin: index, among these problems, of each row's problem.
        """
        questions = take_questions(self.questions, problems)
        prompts = self.programs.read_prompts(self.weights.reward_model, questions)
        if self._pool is None:
            self._allocate(prompts)
        self._prompts = self.programs.enter(self._prompts, prompts, places)
        new_transcripts = [
            begin_transcript(np.asarray(tokens[:length]))
            for tokens, length in zip(questions.tokens, questions.lengths, strict=True)
        ]
        for row, i in zip(rows.tolist(), origin.tolist(), strict=True):
            self._transcripts[row] = new_transcripts[i]

    def _allocate(self, prompts: Any) -> None:
        pool = Pool(
            self.programs,
            self._rows,
            self.reader.max_tokens,
            self.sizes.block,
            dense_like(prompts),
            self._max_bytes,
        )
        tables = pool.tables
        pool.tables = TranscriptTables(
            self._rows, tables.table.shape[1] * tables.block, tables.block
        )
        self._pool = pool
        self._prompts = self.programs.empty_prompts(prompts, self.sizes.problems)

    @property
    def _transcripts(self) -> Any:
        return self._pool.tables.transcripts

    def ask(self, stored: Stored, batch: Batch) -> dict[int, Exception]:
        """Start to read the steps of rows.

        Returns:
            Errors of rows that could not be rendered, by their index in the batch.
        """
        errors: dict[int, Exception] = {}
        read, unread_rows, continued = [], [], []
        numbers: Any = None
        if batch.step_mask.any():
            padded = np.pad(batch.rows, (0, self.sizes.reads - len(batch.rows)))
            solutions = self.policy.fetch(self.policy.solutions_of(stored, padded))
            for i in np.flatnonzero(batch.step_mask).tolist():
                try:
                    one = self._continue(i, batch, solutions)
                except Exception as error:
                    errors[i] = error
                    continue
                self._transcripts[batch.rows[i]] = one.transcript
                if one.rendering is None:
                    unread_rows.append(i)
                else:
                    read.append(i)
                    continued.append(one)
            if read:
                rows, places = batch.rows[read], batch.places[read]
                log_prob = solutions.log_prob[read]
                numbers = self._begin(rows, places, continued, log_prob)
        self._pending.append(
            PendingReading(batch, read, unread_rows, continued, numbers)
        )
        return errors

    def _continue(self, i: int, batch: Batch, solutions: Solutions) -> Continuation:
        """The transcript of one row after its step."""
        questions, problem = self.questions, int(batch.problems[i])
        question = bytes(
            np.asarray(questions.text[problem, : questions.sizes[problem]])
        )
        finished = bool(batch.replies.finished[i])
        return continue_transcript(
            self.reader,
            self._transcripts[batch.rows[i]],
            question.decode("utf-8"),
            np.asarray(solutions.tokens[i]),
            np.asarray(solutions.step_ends[i]),
            stopped=finished and not solutions.truncated[i],
            finished=finished,
        )

    def _begin(
        self, rows: Any, places: Any, continued: list[Continuation], log_prob: Any
    ) -> Any:
        """Start the program that reads the new ids of rows."""
        count, pool = len(rows), self._pool
        shared = np.asarray([one.transcript.shared for one in continued])
        common = np.asarray([one.common for one in continued])
        ends = np.asarray([len(one.transcript.tokens) for one in continued])
        num_kept, lengths = common - shared, ends - shared
        pool.tables.cut(rows, num_kept)
        width, longest = LEAST, int((ends - common).max())
        while width < longest:
            width *= 4
        width = min(width, self.reader.width)
        # A pass may begin after the last position of the longest row.
        needed, max_rows = int(lengths.max()) + width, self.sizes.reads
        size = width_of(count, max_rows, self.sizes.shrinks, factor=2)
        min_shape = (width, room_of(needed), size)
        _, room, size = used = self.shapes.choose(
            min_shape, (width, coarse_room_of(needed), max_rows)
        )
        self.shapes.record_waste(min_shape, used)
        pad = (0, size - count)
        rendered, values = self._pad(continued, size)
        cache = pool.dense_rows_of(rows, size, room)
        log_odds, values, cache = self.programs.read(
            self.weights.reward_model,
            self._prompts,
            cache,
            np.pad(places, pad).astype(np.int32),
            np.pad(shared, pad).astype(np.int32),
            rendered,
            values,
            np.pad(log_prob, pad),
            width,
        )
        pool.store(cache, rows, num_kept, lengths)
        return log_odds, values

    def _pad(
        self, continued: list[Continuation], size: int
    ) -> tuple[RenderedRows, Any]:
        """Renderings as arrays, padded with empty rows."""
        longest = self.reader.max_tokens
        ints: Any = np.zeros((size, longest), np.int32)
        values: Any = np.zeros((size, longest), np.float32)
        marks: Any = np.zeros((size, self.reader.num_marks), np.int32)
        lengths, common, num_marks = (np.zeros(size, np.int32) for _ in range(3))
        for i, one in enumerate(continued):
            assert one.rendering is not None
            transcript, mark_positions = one.transcript, one.rendering.marks
            lengths[i], common[i] = len(transcript.tokens), one.common
            ints[i, : lengths[i]] = transcript.tokens
            values[i, : lengths[i]] = transcript.values
            marks[i, : len(mark_positions)], num_marks[i] = (
                mark_positions,
                len(mark_positions),
            )
        sizes: tuple[Any, Any] = lengths, common
        return RenderedRows(ints, *sizes, marks, num_marks), values  # type: ignore[arg-type]

    def answers(self, stored: Stored, params: Any) -> Iterator[ScoredBatch]:
        """The log-odds of all batches that were started, one by one.

        Args:
            stored: all rows.
            params: weights and temperatures.
        """
        config, size = self.weights.reward_config, self.sizes.reads
        while self._pending:
            batch, read, unread_rows, continued, outputs = self._pending.pop(0)
            log_odds = np.zeros(size, weight_dtype())
            log_odds[unread_rows] = np.nan
            costs = np.zeros(size, np.int32), np.zeros(size, np.float32)
            if read:
                numbers, values = self.policy.fetch(outputs)
                log_odds[read] = numbers[: len(read)]
                for i, one, row_values in zip(read, continued, values, strict=False):
                    self._keep(int(batch.rows[i]), one.transcript, row_values)
                    count = len(one.transcript.tokens) - one.common
                    costs[0][i] = count
                    costs[1][i] = config.count_attended(one.common, count)
            scored = put_scores(self.policy, stored, batch, log_odds, costs, params)
            stored = scored.stored
            yield scored

    def _keep(self, row: int, transcript: Transcript, row_values: np.ndarray) -> None:
        # A problem that failed in the meantime has no transcripts.
        if self._transcripts[row] is transcript:
            values = row_values[: len(transcript.tokens)].copy()
            self._transcripts[row] = transcript._replace(values=values)
