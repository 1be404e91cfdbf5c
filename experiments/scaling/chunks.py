"""The results of a batch are graded and written in chunks, while the batch runs.

A chunk is written when it has as many problems as the engine runs at once, or when its
first problem has waited for `MAX_WAIT` when a burst or a problem ends. A kill costs the
problems that have not been written.
"""

import contextlib
import threading
import time

import jax

from tsi.engine.interruption import delay_signals
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import get_method
from tsi.experiments.plans.plan import Batch
from tsi.experiments.plans.run_method import stream_method
from tsi.experiments.rows.row_writer import BackgroundWriter
from tsi.experiments.scaling.progress import Progress
from tsi.experiments.worlds.world import World
from tsi.results.result import Result

MAX_WAIT = 10.0
"""Seconds that a result may wait for others, while the writer is idle."""
MAX_CHUNKS = 4
"""Chunks that may wait for the writer before the engine does."""


class Chunks:
    """The results of a batch in chunks; the last one is written when the context ends.

    Args:
        batch: a call of the engine.
        missing: cells without a row.
        background: writes rows.
        bar: shows what has been handed to the writer.
    """

    def __init__(
        self,
        batch: Batch,
        missing: set[Cell],
        background: BackgroundWriter,
        bar: Progress,
    ) -> None:
        self._batch, self._missing = batch, missing
        self._background, self._bar = background, bar
        self._results: list[Result] = []
        self._start, self._lock = 0.0, threading.RLock()
        self._in_rounds = get_method(batch.source).rounds is not None
        self._problems = [x for x in batch.problems if self._lacks_row(x.id)]

    def run(self, world: World) -> None:
        """Run the problems of the batch that lack a row, and write their chunks.

        Args:
            world: a task with its models.

        Raises:
            ProblemError: some problems failed; raised after all others have ended.
            ResultsError: the system cannot write.
            Stopped: a signal came.
        """
        batch = self._batch
        self._bar.begin(batch, len(self._problems))
        stream = stream_method(
            world,
            batch.source,
            jax.random.key(batch.seed),
            self._problems,
            batch.num_particles,
            progress=lambda _: self._write_if_due(),
        )
        # An error of the writer stops the engine, too.
        with contextlib.closing(stream):
            for result in stream:
                with self._lock:
                    if not self._results:
                        self._start = time.monotonic()
                    self._results.append(result)
                    self._write_if_due()

    def _lacks_row(self, problem: int | str) -> bool:
        batch, missing = self._batch, self._missing
        return any(
            Cell(method, budget, batch.seed, problem) in missing
            for method, budget in batch.outcomes
        )

    def _write_if_due(self) -> None:
        # With several groups of devices, their threads report the progress.
        with self._lock:
            wait = time.monotonic() - self._start
            size, at_once = len(self._results), self._batch.at_once
            is_due = size >= at_once or (size > 0 and wait > MAX_WAIT)
            # A slow grader does not hold up the engine before it is far behind.
            if is_due and (self._background.is_idle or size >= MAX_CHUNKS * at_once):
                self._write()

    def _write(self) -> None:
        # A signal while the results are handed over would lose them.
        with delay_signals():
            self._hand_over()

    def _hand_over(self) -> None:
        results, self._results = self._results, []
        if not self._in_rounds:
            # These problems ran together, so each gets an equal share of the time.
            share = sum(result.ledger.seconds for result in results) / len(results)
            results = [result.with_seconds(share) for result in results]
        places = {problem.id: i for i, problem in enumerate(self._batch.problems)}
        results.sort(key=lambda result: places[result.problem_id])
        self._background.write(self._batch, results, self._missing)
        self._bar.advance(results)

    def __enter__(self) -> "Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._results:
            self._write()
