"""The loop over problems whose policy is behind a server.

A lane is this loop, and a place is the index of a problem in it. Problems do not wait
for each other: when all rows of a problem have taken their steps and have been scored,
its sampler decides, while the server works on the rows of other problems. The programs
of the sampler run for all problems that are ready, in the thread that calls `run`;
requests run in the thread of the client, and their results come back through a queue. A
seed depends only on the run's key, the problem, the turn and the row. It does not
depend on which problems run together, nor on how often a request was repeated.
"""

import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.ended_problems import EndedProblem, FailedProblem
from tsi.engine.meters.clock import Clock
from tsi.engine.meters.report import Report
from tsi.engine.methods import Method
from tsi.engine.problem_loop import ProblemLoop
from tsi.engine.row_requests import requests_of_rows
from tsi.problem_ids import IdWords
from tsi.reasoning.limits import SolutionLimits
from tsi.serving.client import closed_error
from tsi.serving.dialect import Drawing
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import Score, Scorer, ServedScorer
from tsi.serving.served_rows import Row, ServedRows
from tsi.serving.step_requests import (
    Answer,
    Extension,
    Repeat,
    StepRequests,
    scored_row,
)

WAIT = 0.2
"""The loop checks after this many seconds whether it has been stopped."""


class Arrival(NamedTuple):
    """A message from the client's thread.

    Attributes:
        place: place of the problem.
        visit: number of problems that had left this place when the request began; an
            arrival for a problem that has left is dropped.
        extensions: rows that have taken a step.
        scores: score of each from a server; None if this machine computes scores.
        error: the error, if the request failed.
    """

    place: int
    visit: int
    extensions: list[Extension]
    scores: list[Score] | None = None
    error: Exception | None = None


class ServedLane(ProblemLoop):
    """Runs one method on problems.

    Args:
        policy: draws steps.
        scorer: the reward of steps.
        method: the programs of the sampler.
        key: of the run.
        prompts: ids or code points of each problem's prompt.
        ids: of all problems.
        limits: of a solution.
        drawing: how steps are drawn.
        places: P, number of problems that run at the same time.
        log_truncation: added to the log potential of a truncated solution.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        scorer: Scorer | ServedScorer,
        method: Method,
        key: Any,
        prompts: Sequence[tuple[int, ...]],
        ids: IdWords,
        limits: SolutionLimits,
        drawing: Drawing,
        places: int,
        log_truncation: float,
    ) -> None:
        super().__init__(method, key, ids, places, limits.max_steps, Clock())
        self.policy, self.scorer, self.limits = policy, scorer, limits
        self.requests = StepRequests(policy, scorer, key, prompts, ids, limits, drawing)
        population = self.population
        self.rows = ServedRows(population.working, population.total, log_truncation)
        self._visits = np.zeros(places, np.int64)
        self._arrivals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._generated = 0
        self._running: set[Any] = set()

    def report(self) -> Report:
        """What has been done so far."""
        times = self.clock.read()
        return Report(
            self._generated,
            self._generated,
            0,
            times.seconds,
            compiling=times.compiling,
        )

    def run(
        self,
        problems: Sequence[int],
        stop: threading.Event,
        report_progress: Callable[[], None] = lambda: None,
    ) -> Iterator[EndedProblem | FailedProblem]:
        """See :class:`tsi.engine.problem_loop.ProblemLoop`."""
        try:
            yield from super().run(problems, stop, report_progress)
        finally:
            for future in list(self._running):
                future.cancel()

    # Problems

    def _enter(self, problems: list[int], places: Int[np.ndarray, " n"]) -> None:
        before = self.clock.phase("decide")
        self.rows.enter(self.population.rows_of(places))
        self._begin(problems, places)
        self.clock.switch(before)

    def _reader(self) -> Callable[[Any, Any], tuple[Any, Any]]:
        max_steps = self.limits.max_steps

        def read(rows: Any, working: Any) -> tuple[Any, Any]:
            return self.rows.particles(rows, max_steps), self.rows.cost(working)

        return read

    def _keep(self, stored: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> None:
        self.rows.keep(stored, rows)

    def _free(self, places: Int[np.ndarray, " n"]) -> None:
        self._visits[places] += 1

    # Steps

    def _extend(self, is_requested: Bool[np.ndarray, " P"]) -> None:
        """Give rows the prefixes that are requested, and extend them."""
        if not is_requested.any():
            return
        population = self.population
        rows, parents, limit, extend, sources = requests_of_rows(
            self.decisions.request, is_requested, population
        )
        repeated = None if sources is None else [self.rows.rows[s] for s in sources]
        replies = self.rows.arrange(rows, parents, limit)
        population.move(rows, parents, limit, replies)
        active = population.start_turn(rows, extend)
        is_new = active if sources is None else active & (sources < 0)
        places = population.places_of(rows)
        for place in np.unique(places[active]).tolist():
            is_of_place = places == place
            self._draw(place, rows[is_new & is_of_place])
            if repeated is not None and sources is not None:
                repeats = np.flatnonzero(active & is_of_place & (sources >= 0))
                self._repeat(place, rows[repeats], [repeated[i] for i in repeats])

    def _draw(self, place: int, rows: Int[np.ndarray, " n"]) -> None:
        """Ask the server for new steps of rows of one problem."""
        if not len(rows):
            return
        problem = int(self.population.index[place])
        turn = int(self.decisions.turns[place])
        each = self.method.plan.rows
        rows_to_draw = [(row % each, row, self.rows.rows[row]) for row in rows.tolist()]
        self._start(place, self.requests.draw(problem, turn, rows_to_draw))

    def _repeat(
        self, place: int, rows: Int[np.ndarray, " n"], sources: list[Row]
    ) -> None:
        """Let rows of one problem repeat the next step of their sources."""
        extensions: list[Extension] = []
        scores: list[Score] = []
        unknown: list[Repeat] = []
        for row, source in zip(rows.tolist(), sources, strict=True):
            old = self.rows.rows[row]
            depth = len(old.steps)
            if old == source.cut(depth):
                # The same step after the same prefix, so its log p and score are known.
                after = source.cut(depth + 1)
                log_prob = after.newest.log_prob - old.newest.log_prob
                extensions.append(Extension(row, after, log_prob, None))
                scores.append(Score(after.newest.log_odds))
            else:
                unknown.append(Repeat(row, old, source))
        if extensions:
            visit = int(self._visits[place])
            self._arrivals.put(Arrival(place, visit, extensions, scores))
        if unknown:
            problem = int(self.population.index[place])
            self._start(place, self.requests.repeat(problem, unknown))

    def _start(self, place: int, work: Coroutine[Any, Any, Answer]) -> None:
        """Start work in the client's thread, whose result will arrive."""
        visit = int(self._visits[place])

        def arrive(future: Any) -> None:
            self._running.discard(future)
            error: Any = closed_error(self.policy.client.address)
            if not future.cancelled():
                error = future.exception()
            if error is None:
                self._arrivals.put(Arrival(place, visit, *future.result()))
            else:
                self._arrivals.put(Arrival(place, visit, [], None, error))

        future = self.policy.client.submit(work)
        self._running.add(future)
        future.add_done_callback(arrive)

    def _work(self) -> bool:
        """Wait for steps, score those that have arrived, and record them."""
        if not self.population.waiting.any():
            return False
        before = self.clock.phase("decode")
        arrivals: list[Arrival] = []
        try:
            arrivals.append(self._arrivals.get(timeout=WAIT))
            while True:
                arrivals.append(self._arrivals.get_nowait())
        except queue.Empty:
            pass
        self.clock.phase("reward")
        for place in {arrival.place for arrival in arrivals}:
            own_arrivals = [a for a in arrivals if a.place == place]
            self._record(
                place, [a for a in own_arrivals if a.visit == self._visits[place]]
            )
        self.clock.switch(before)
        return True

    def _record(self, place: int, arrivals: list[Arrival]) -> None:
        """Record the steps of one problem; score them here if no server has."""
        depth = int(self.decisions.turns[place]) + 1
        failed = [a.error for a in arrivals if a.error is not None]
        extensions: list[Extension] = []
        scores: list[Any] = []
        for arrival in arrivals:
            arrival_scores: Any = arrival.scores
            if arrival_scores is None:
                problem = int(self.population.index[place])
                rows = [scored_row(problem, e.after) for e in arrival.extensions]
                arrival_scores = self.scorer.score(rows) if rows else []  # type: ignore[union-attr]
            extensions += arrival.extensions
            scores += arrival_scores
        failed += [score for score in scores if isinstance(score, Exception)]
        if failed:
            self._give_up(place, failed[0], depth)
            return
        counts = self.rows.spending
        for extension, score in zip(extensions, scores, strict=True):
            row, after, _, step, repeated = extension
            newest = after.newest._replace(log_odds=score.log_odds)
            after = after._replace(steps=(*after.steps[:-1], newest))
            counts.reward_read[row] += score.tokens_read
            if step is None:
                self.rows.rows[row] = after
                counts.repeated[row] += repeated
            else:
                self.rows.extend(row, after, step)
                self._generated += step.num_tokens
        if extensions:
            index = np.asarray([extension.row for extension in extensions])
            log_probs = [extension.log_prob for extension in extensions]
            self.population.end_step(index, self.rows.replies(index, log_probs))
