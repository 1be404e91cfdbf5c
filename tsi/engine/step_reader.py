"""Steps that rows have taken, read by the reward.

A step is drawn in a slot, or it repeats a step of another row. Either way one program
appends it to the row and lets the reward's model read it. A reward on the host scores
the step afterwards, before the next burst. For a reward model that reads rendered text,
the scores are collected later, so that the device reads while the host renders. An
offloaded reward model reads when no row can write before its scores.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from tsi.engine.host_scores import Batch, HostScores
from tsi.engine.model_weights import ModelWeights
from tsi.engine.population import Population
from tsi.engine.programs.model_programs import Programs
from tsi.engine.programs.row_replies import RowReplies
from tsi.engine.row_store import RowStore
from tsi.engine.schedule import width_of_step
from tsi.engine.sizing.shapes import Shapes, cost_of_reading
from tsi.engine.sizing.sizes import Sizes, coarse_room_of, room_of, width_of
from tsi.engine.text_readings import TextReadings
from tsi.engine.writers import Writers
from tsi.errors import PolicyError


class FailedStep(NamedTuple):
    """A step that could not be drawn or scored: place of its problem, number, error."""

    place: int
    step: int
    error: Exception


class StepReader:
    """Reads the steps of the rows of one lane.

    Args:
        programs: the compiled programs.
        weights: of the models, and temperatures.
        sizes: of the lane.
        store: the rows.
        population: the same rows, as the host counts them.
        scores: scorer outside these programs; None if the programs score steps.
    """

    def __init__(
        self,
        programs: Programs,
        weights: ModelWeights,
        sizes: Sizes,
        store: RowStore,
        population: Population,
        scores: HostScores | TextReadings | None,
    ) -> None:
        self.programs, self.weights, self.sizes = programs, weights, sizes
        self.store, self.population, self.scores = store, population, scores
        self.shapes = Shapes(cost_of_reading, sizes.price, exact=2)
        self.repeat_shapes = Shapes(cost_of_reading, sizes.price)
        self._waiting: list[Batch] = []

    @property
    def has_waiting_steps(self) -> bool:
        """Whether steps wait for an offloaded reward model."""
        return bool(self._waiting)

    def read(self, writers: Writers, at: Int[np.ndarray, " A"]) -> list[FailedStep]:
        """Read the steps that have ended in some slots; the slots become free.

        Args:
            writers: the slots.
            at: indices of slots, at most `sizes.reads`.

        Returns:
            Steps that could not be drawn or scored.
        """
        store, population = self.store, self.population
        rows = writers.leave(at).astype(np.int32)
        size, width = self._shape(int(writers.counts[at].max()), len(at), writers.room)
        pad = (0, size - len(at))
        caches = store.readers.caches_of(rows, size, width)
        store.stored, replies, caches, change = self.programs.end_step(
            store.stored,
            writers.slots,
            writers.common_cache,
            np.pad(at, pad).astype(np.int32),
            np.pad(rows, pad, constant_values=population.total),
            np.pad(population.places_of(rows), pad),
            np.pad(population.depths[rows], pad),
            caches,
            width,
            self.weights.params,
        )
        num_kept, filled = store.policy.tables.lengths[rows], writers.filled[at]
        start = writers.start[at]
        store.policy.store(writers.slots.cache, rows, num_kept, filled, at, start)
        replies, change = self.programs.fetch((replies, change))
        store.readers.store(caches, rows, change)
        return self._score(rows, _drop_padding(replies, len(at)))

    def repeat(
        self, rows: Int[np.ndarray, " n"], sources: Int[np.ndarray, " n"]
    ) -> list[FailedStep]:
        """Let rows repeat the next step of other rows, and read it.

        Args:
            rows: working rows, at most `sizes.reads`.
            sources: the row whose step each repeats.

        Returns:
            Steps that could not be drawn or scored.
        """
        store, population = self.store, self.population
        rows = rows.astype(np.int32)
        width = self.programs.target.max_step_tokens
        filled = store.policy.tables.lengths[rows]
        room, size = self._repeat_shape(int(filled.max()) + width, len(rows))
        pad = (0, size - len(rows))
        cache = store.policy.dense_rows_of(rows, size, room)
        store.stored, replies, caches, change, cache = self.programs.repeat(
            store.stored,
            cache,
            np.pad(filled, pad),
            np.pad(rows, pad, constant_values=population.total),
            np.pad(sources, pad).astype(np.int32),
            np.pad(population.places_of(rows), pad),
            np.pad(population.depths[rows], pad),
            store.readers.caches_of(rows, size, width),
            self.weights.params,
            width,
        )
        replies, change = self.programs.fetch((replies, change))
        replies = _drop_padding(replies, len(rows))
        new = replies.lengths - population.lengths[rows]
        store.policy.store(cache, rows, filled, filled + new)
        store.readers.store(caches, rows, change)
        return self._score(rows, replies)

    def collect(self) -> list[FailedStep]:
        """Fetch pending scores, and record that their steps have been read.

        Returns:
            Steps that could not be scored.
        """
        if self.scores is None:
            return []
        failed = self._ask_waiting()
        for scored in self.scores.answers(self.store.stored, self.weights.settings):
            self.store.stored, rows, replies = scored
            self.population.end_step(rows, replies)
        return failed

    def _score(
        self, rows: Int[np.ndarray, " n"], replies: RowReplies
    ) -> list[FailedStep]:
        """Record that steps have been read, or request their scores.

        Returns:
            Steps that could not be drawn or scored.
        """
        population = self.population
        places = population.places_of(rows)
        failed = [
            FailedStep(
                int(places[i]), int(population.depths[rows[i]]) + 1, _no_number()
            )
            for i in np.flatnonzero(np.isnan(replies.log_probs))
        ]
        if self.scores is None:
            population.end_step(rows, replies)
            return failed
        batch = Batch(
            rows,
            replies,
            population.lengths[rows],
            population.depths[rows],
            population.index[places],
            places,
        )
        if self.weights.is_offloaded:
            self._waiting.append(batch)
            return failed
        return failed + self._ask(batch)

    def _ask_waiting(self) -> list[FailedStep]:
        """Request the scores of all steps that wait, in full batches by length."""
        if not self._waiting:
            return []
        steps = jax.tree.map(lambda *x: np.concatenate(x), *self._waiting)
        self._waiting = []
        order = np.argsort(steps.replies.lengths - steps.before, kind="stable")
        failed: list[FailedStep] = []
        for start in range(0, len(order), self.sizes.reads):
            at = order[start : start + self.sizes.reads]
            failed += self._ask(jax.tree.map(lambda leaf, at=at: leaf[at], steps))
        return failed

    def _ask(self, batch: Batch) -> list[FailedStep]:
        """Request the scores of a batch.

        Returns:
            Steps that could not be scored.
        """
        assert self.scores is not None
        # The rows of problems that have been given up are gone.
        is_in_work = self.population.index[batch.places] == batch.problems
        batch = jax.tree.map(lambda leaf: leaf[is_in_work], batch)
        errors = self.scores.ask(self.store.stored, batch)
        return [
            FailedStep(int(batch.places[i]), int(batch.depths[i]) + 1, error)
            for i, error in errors.items()
        ]

    def _repeat_shape(self, needed: int, count: int) -> tuple[int, int]:
        """Number of positions and rows of the program that repeats some steps.

        Args:
            needed: positions of the longest row after its step.
            count: number of rows.
        """
        width, max_rows = self.programs.target.max_step_tokens, self.sizes.reads
        num_rows = width_of(count, max_rows, self.sizes.shrinks)
        min_shape = (width, room_of(needed), num_rows)
        used = self.repeat_shapes.choose(
            min_shape, (width, coarse_room_of(needed), max_rows)
        )
        self.repeat_shapes.record_waste(min_shape, used)
        _, room, size = used
        return room, size

    def _shape(self, longest: int, count: int, room: int) -> tuple[int, int]:
        """Number of rows and positions of the program that reads some steps.

        Args:
            longest: tokens of the longest step.
            count: number of steps.
            room: positions of the slots.
        """
        target, max_rows = self.programs.target, self.sizes.reads
        width = target.max_step_tokens
        if target.reward.reads_ids:
            width = width_of_step(longest, width)
        num_rows = width_of(count, max_rows, self.sizes.shrinks, factor=2)
        min_shape = (width, room, num_rows)
        used = self.shapes.choose(min_shape, (width, room, max_rows))
        self.shapes.record_waste(min_shape, used)
        return used[-1], width


def _no_number() -> PolicyError:
    return PolicyError(
        "The policy's logits are not numbers (NaN) in this step. Check its weights and "
        "their type: bfloat16 or float16 weights may overflow."
    )


def _drop_padding(replies: Any, count: int) -> RowReplies:
    """The replies of rows without those of the padding."""
    return jax.tree.map(lambda leaf: leaf[:count], replies)
