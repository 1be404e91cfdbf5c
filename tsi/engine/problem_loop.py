"""The loop over problems that all lanes share, wherever the policy runs."""

import abc
import collections
import functools
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.decisions import Decisions
from tsi.engine.ended_problems import EndedProblem, FailedProblem
from tsi.engine.meters.clock import Clock
from tsi.engine.methods import Method
from tsi.engine.population import Population
from tsi.engine.row_requests import rows_to_keep
from tsi.engine.schedule import num_to_enter
from tsi.problem_ids import IdWords

Rows = Int[np.ndarray, "n"]


def hash_array(before: int, values: Any) -> int:
    """A hash of 32 bits of an array, after another one."""
    return zlib.crc32(np.ascontiguousarray(values).tobytes(), before)


class ProblemLoop(abc.ABC):
    """Runs one method on problems, each at its own pace.

    A problem enters when a place is free. When all of its rows have ended their steps,
    its sampler decides which prefixes to extend next. When the sampler is done, the
    problem leaves.

    Args:
        method: the programs of the sampler.
        key: of the run.
        ids: of all problems.
        places: P, number of problems in work at once.
        max_steps: of a solution.
        clock: times the parts of the loop.
    """

    def __init__(
        self,
        method: Method,
        key: Any,
        ids: IdWords,
        places: int,
        max_steps: int,
        clock: Clock,
    ) -> None:
        self.method, self.ids, self.clock = method, ids, clock
        self.population = Population(places, method.plan, max_steps)
        self.decisions = Decisions(method, key, places)
        self.failed: list[FailedProblem] = []

    def run(
        self,
        problems: Sequence[int],
        stop: threading.Event,
        report_progress: Callable[[], None] = lambda: None,
    ) -> Iterator[EndedProblem | FailedProblem]:
        """Run problems, given by index; yield each as soon as it has ended.

        Args:
            problems: indices.
            stop: when it is set, unfinished problems are abandoned.
            report_progress: function called after each round of work on the rows.
        """
        remaining, population = collections.deque(problems), self.population
        while (remaining or population.occupancy.any()) and not stop.is_set():
            free = np.flatnonzero(~population.occupancy)
            count = num_to_enter(len(free), len(remaining), population.places)
            if count:
                self._enter([remaining.popleft() for _ in range(count)], free[:count])
            # Chains may repeat steps for many turns without other work.
            while not stop.is_set() and (ready := population.is_ready).any():
                yield from self._decide(ready)
            if not stop.is_set() and self._work():
                report_progress()
            yield from self.failed
            self.failed.clear()

    def fingerprint(self) -> int:
        """A hash of the decisions so far, below 2 ** 30."""
        population, decisions = self.population, self.decisions
        parts = population.index, population.depths, population.lengths
        leaves = jax.tree.leaves((*parts, decisions.turns, decisions.request))
        return functools.reduce(hash_array, leaves, 0) >> 2

    @abc.abstractmethod
    def _enter(self, problems: list[int], places: Rows) -> None:
        """Prepare the rows of problems, and call `_begin`."""

    @abc.abstractmethod
    def _work(self) -> bool:
        """Advance the rows; False if there is nothing to do."""

    @abc.abstractmethod
    def _keep(self, stored: Rows, rows: Rows) -> None:
        """Copy rows of an explorer's turn to the stored rows that it requests."""

    @abc.abstractmethod
    def _extend(self, is_requested: Bool[np.ndarray, " P"]) -> None:
        """Give rows the prefixes that are requested, and extend them."""

    @abc.abstractmethod
    def _reader(self) -> Callable[[Rows, Rows], tuple[Any, Any]]:
        """A function of result rows and working rows: particles and costs."""

    @abc.abstractmethod
    def _free(self, places: Rows) -> None:
        """Release what the rows of problems that leave have held."""

    def _begin(self, problems: list[int], places: Rows) -> None:
        """Let the samplers of problems that have entered begin."""
        self.population.enter(problems, places)
        entered = np.isin(np.arange(self.population.places), places)
        # Empty places get the first problem's id; their requests are not used.
        index = np.maximum(self.population.index, 0)
        ids = jax.tree.map(lambda leaf: np.asarray(leaf)[index], self.ids)
        self.decisions.begin(ids, entered)
        self._extend(entered)

    def _decide(self, ready: Bool[np.ndarray, " P"]) -> Iterator[EndedProblem]:
        """Let the samplers of problems decide; yield those that have ended."""
        before = self.clock.phase("decide")
        population = self.population
        if self.method.plan.stored:
            stored, rows = rows_to_keep(self.decisions.request, ready, population)
            self._keep(stored, rows)
            population.keep(stored, rows)
        continues = self.decisions.decide(ready, population.reply_by_place())
        self._extend(continues)
        ended = np.flatnonzero(ready & ~continues)
        leaving = list(self._leave(ended)) if len(ended) else []
        self.clock.switch(before)
        yield from leaving

    def _leave(self, places: Rows) -> Iterator[EndedProblem]:
        """Fetch the results of problems that have ended, and release their rows."""
        population, read = self.population, self._reader()
        results = self.decisions.results(places)
        for place, (state, infos) in zip(places.tolist(), results, strict=True):
            working = population.working_rows(place)
            rows = working
            if self.method.plan.stored:
                rows = population.prefix_rows(place, np.asarray(state.members))
            particles, cost = read(rows, working)
            problem = int(population.index[place])
            yield EndedProblem(problem, particles, state, infos, cost)
        self._release(places)

    def _give_up(self, place: int, error: Exception, step: int) -> None:
        """Abandon the problem in a place."""
        problem = int(self.population.index[place])
        self.failed.append(FailedProblem(problem, error, step))
        self._release(np.asarray([place]))

    def _release(self, places: Rows) -> None:
        self._free(places)
        self.decisions.leave(places)
        self.population.leave(places)
