"""The loop of one group of devices: problems enter, are extended, and leave.

A lane is this loop. Problems do not wait for each other. A problem has a place, its
index in the arrays of the lane, and its rows are its particles. Rows wait in a queue
until one of the slots, the rows of the program that draws tokens, is free. A burst, one
call of that program, draws some tokens in every slot. When a row ends a step, the
reward reads it and its slot becomes free. When all rows of a problem have been read,
its sampler decides, and they join the queue again. The samples do not depend on which
rows share the slots, since their random numbers do not.

A lane is a :class:`tsi.engine.problem_loop.ProblemLoop` with these parts:

- :class:`tsi.engine.prompt_reader.PromptReader` reads the prompts of problems;
- :class:`tsi.engine.decisions.Decisions` has the sampler's states and requests, which
  :mod:`tsi.engine.row_requests` translates into rows of the lane;
- :class:`tsi.engine.population.Population` has the numbers of problems and rows, and
  :class:`tsi.engine.row_store.RowStore` the rows themselves;
- :class:`tsi.engine.writers.Writers` draws tokens in slots;
- :class:`tsi.engine.step_reader.StepReader` lets the reward read steps;
- :mod:`tsi.engine.schedule` says how many rows each of these waits for.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.host_scores import HostScores
from tsi.engine.meters.clock import Clock
from tsi.engine.meters.report import CacheBytes, Report
from tsi.engine.methods import Method
from tsi.engine.model_weights import ModelWeights
from tsi.engine.problem_loop import ProblemLoop, hash_array
from tsi.engine.programs.model_programs import Programs
from tsi.engine.prompt_reader import PromptReader
from tsi.engine.row_requests import requests_of_rows
from tsi.engine.row_store import POOL, RowStore
from tsi.engine.schedule import num_to_wait_for, slots_to_read
from tsi.engine.sizing.sizes import Sizes, room_of, width_of
from tsi.engine.step_reader import FailedStep, StepReader
from tsi.engine.text_readings import TextReadings
from tsi.engine.writers import Writers
from tsi.problem_ids import IdWords
from tsi.rewards.reward import Prompts


class Lane(ProblemLoop):
    """Runs one method on problems, on one group of devices.

    Args:
        programs: the compiled programs.
        method: of the sampler.
        key: of the run.
        weights: of the models, and temperatures.
        prompts: token ids of all problems, on the host.
        questions: the result of the reward's `prepare`, one row per problem, or None.
        ids: of all problems.
        sizes: of the lane.
        exact: whether its clock is exact (:mod:`tsi.engine.meters.clock`).
    """

    def __init__(
        self,
        programs: Programs,
        method: Method,
        key: Any,
        weights: ModelWeights,
        prompts: Prompts,
        questions: Any,
        ids: IdWords,
        sizes: Sizes,
        exact: bool = False,
    ) -> None:
        programs.set_home(weights.policy_location)
        plan, target = method.plan, programs.target
        super().__init__(
            method, key, ids, sizes.problems, target.max_steps, Clock(exact)
        )
        self.programs, self.sizes = programs, sizes
        scores: HostScores | TextReadings | None = None
        readings: TextReadings | None = None
        if programs.host_reward is not None:
            reward = programs.host_reward
            scores = HostScores(programs, reward, questions, sizes.reads)
        if programs.texts is not None:
            # A reward model that reads text has its own programs and devices.
            total = self.population.total
            scores = readings = TextReadings(
                programs, programs.texts, weights, questions, total, sizes, POOL // 2
            )
            questions = None
        self.weights, self._transfers_before = weights, weights.num_transfers
        self.prompts = PromptReader(programs, weights, prompts, questions, sizes)
        longest = self.prompts.width + target.max_tokens
        self.store = RowStore(programs, weights, sizes, plan, longest, readings)
        self.steps = StepReader(
            programs, weights, sizes, self.store, self.population, scores
        )
        self.writers: Any = None
        self.queue: collections.deque[int] = collections.deque()
        self.cache = CacheBytes()
        self._inputs = prompts, questions, ids

    @functools.cached_property
    def _hash_of_inputs(self) -> int:
        return functools.reduce(hash_array, jax.tree.leaves(self._inputs), 0) >> 2

    def fingerprint(self) -> int:
        """See :class:`ProblemLoop`; the prompts are a part of it."""
        return super().fingerprint() ^ self._hash_of_inputs

    def report(self) -> Report:
        """What has been done so far."""
        writers, times = self.writers, self.clock.read()
        counts = (0, 0, 0)
        if writers is not None:
            counts = (writers.useful, writers.computed, writers.bursts)
        return Report(
            *counts,
            times.seconds,
            compiling=times.compiling,
            cache=self.cache,
            weight_transfers=self.weights.num_transfers - self._transfers_before,
        )

    @property
    def num_written(self) -> int:
        """Tokens that have been written so far."""
        return 0 if self.writers is None else self.writers.useful

    # Problems

    def _enter(self, problems: list[int], places: Int[np.ndarray, " n"]) -> None:
        """Read the prompts of problems, and let their samplers begin."""
        before = self.clock.phase("prefill")
        for batch in self.prompts.read(problems, places):
            entering = batch.places[: batch.number]
            self.store.enter(batch, self.population.rows_of(entering))
            # Its dense caches must be free before the next batch is read.
            del batch
        self.store.read_questions()
        if self.writers is None:
            max_positions = room_of(self.store.longest + self.sizes.burst)
            each = self.method.plan.rows
            self.writers = Writers(
                self.programs,
                self.store.policy,
                self.sizes,
                each,
                max_positions,
                self.weights,
            )
        self.writers.forget(self.population.rows_of(places))
        self._begin(problems, places)
        self.clock.switch(before)

    def _reader(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        host = self.programs.fetch(self.store.stored.rows)
        cost = self.programs.fetch(self.store.stored.cost)

        def read(rows: Any, working: Any) -> tuple[Any, Any]:
            return (
                jax.tree.map(lambda leaf: leaf[rows], host),
                jax.tree.map(lambda leaf: leaf[working], cost),
            )

        return read

    def _give_up_all(self, failed: list[FailedStep]) -> None:
        """Abandon the problems of steps that could not be drawn or scored."""
        population = self.population
        for place, step, error in failed:
            if population.index[place] < 0:
                continue
            rows = population.rows_of(np.asarray([place]))
            self.queue = collections.deque(r for r in self.queue if r not in rows)
            self.writers.drop(rows)
            self._give_up(place, error, step)

    def _free(self, places: Int[np.ndarray, " n"]) -> None:
        rows = self.population.rows_of(places)
        self.store.release(rows)
        self.writers.forget(rows)
        self.writers.release(places)

    # Prefixes

    def _keep(self, stored: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> None:
        self.store.keep(stored, rows)

    def _extend(self, is_requested: Bool[np.ndarray, " P"]) -> None:
        """Give the rows of problems the prefixes that are requested, and queue them."""
        if not is_requested.any():
            return
        population = self.population
        rows, parents, limit, extend, sources = requests_of_rows(
            self.decisions.request, is_requested, population
        )
        replies = self.store.arrange(rows, parents, limit)
        population.move(rows, parents, limit, replies)
        self.writers.forget(rows[parents != rows] if limit is None else rows)
        active = population.start_turn(rows, extend)
        if sources is not None:
            repeats = active & (sources >= 0)
            self._repeat(rows[repeats], sources[repeats])
            active &= (sources < 0) & population.is_in_work(rows)
        self.writers.share(rows[active])
        self.queue.extend(rows[active].tolist())

    def _repeat(
        self, rows: Int[np.ndarray, " n"], sources: Int[np.ndarray, " n"]
    ) -> None:
        """Let rows repeat steps of other rows."""
        if not len(rows):
            return
        before = self.clock.phase("repeat")
        for start in range(0, len(rows), self.sizes.reads):
            batch = np.arange(start, min(start + self.sizes.reads, len(rows)))
            # The rows of a problem that has just failed repeat nothing.
            batch = batch[self.population.is_in_work(rows[batch])]
            if len(batch):
                self.writers.forget(rows[batch])
                self._give_up_all(self.steps.repeat(rows[batch], sources[batch]))
        if not self.weights.is_offloaded:
            self._give_up_all(self.steps.collect())
        self.clock.switch(before)

    # Steps

    def _work(self) -> bool:
        """Fill the slots, draw tokens, and let the reward read the steps that ended."""
        writers = self.writers
        if not (
            self.queue
            or (writers.active | writers.ended).any()
            or self.steps.has_waiting_steps
        ):
            return False
        before = self.clock.phase("move")
        # Slots are also made longer here for the rows that are in them.
        if self.queue or writers.active.any():
            self._fill()
        self.clock.phase("decode")
        if writers.active.any():
            writers.write(self._num_to_wait_for())
        self.clock.phase("reward")
        self._read()
        self.clock.switch(before)
        self.cache = max(
            self.cache, self.store.cache_bytes(), key=lambda cache: cache.num_bytes
        )
        return True

    def _fill(self) -> None:
        """Move rows from the queue into free slots."""
        writers, each = self.writers, self.method.plan.rows
        rows = writers.fill(self.queue)
        if not len(rows):
            return
        size = width_of(len(rows), writers.number, self.sizes.shrinks)
        padded = np.pad(rows, (0, size - len(rows)))
        places = padded // each
        writers.admit(
            rows,
            self.store.stored,
            padded,
            places,
            self.decisions.key_steps[places],
            self.decisions.turns[places],
            padded % each,
        )

    def _num_to_wait_for(self) -> int:
        """Number of rows that must end their steps before the burst returns."""
        writers = self.writers
        return num_to_wait_for(
            self.population.places_of(writers.row_of[writers.active]),
            slots=writers.number,
            part=self.sizes.part,
            queued=bool(self.queue),
            smaller=writers.largest_size_below(int(writers.active.sum())),
        )

    def _read(self) -> None:
        """Let the reward read the steps that some problem or row waits for."""
        writers, reads = self.writers, self.sizes.reads
        is_offloaded = self.weights.is_offloaded
        at = slots_to_read(
            writers.ended,
            writers.active,
            self.population.places_of(writers.row_of),
            writers.counts,
            reads,
            all_now=bool(self.queue) or self.sizes.part == 1 or is_offloaded,
        )
        for start in range(0, len(at), reads):
            batch = at[start : start + reads]
            # The rows of a problem that has just failed are not read.
            batch = batch[writers.ended[batch]]
            if len(batch):
                self._give_up_all(self.steps.read(writers, batch))
        # An offloaded reward model reads once no row is active or queued.
        if not is_offloaded or not (self.queue or writers.active.any()):
            self._give_up_all(self.steps.collect())
