"""Writes the particles and rows of ended problems, in this order, in the background.

One thread grades and writes results of a batch while the engine works on others.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from tsi.engine.interruption import delay_signals
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import method_settings
from tsi.experiments.plans.plan import Batch
from tsi.experiments.rows.kept_particles import Keep, id_of_texts, record_of
from tsi.experiments.rows.particle_files import ParticlesFile
from tsi.experiments.rows.results import ResultsFile
from tsi.experiments.rows.row_format import TEXTS_ID
from tsi.experiments.rows.rows import rows_of
from tsi.experiments.worlds.world import World
from tsi.results.result import Result


class RowWriter:
    """Writes results to a file of rows and one of particles.

    Args:
        world: a task with its models, which grades answers.
        results: the file of rows.
        particles: the file of particles; None if they are not kept.
        keep: what is kept of them.
    """

    def __init__(
        self,
        world: World,
        results: ResultsFile,
        particles: ParticlesFile | None,
        keep: Keep,
    ) -> None:
        self._world, self._results = world, results
        self._particles, self._keep = particles, keep

    def find_missing(self, batch: Batch) -> set[Cell]:
        """Cells of a batch without a row."""
        return set(self._results.find_missing(batch.cells))

    def write(
        self, batch: Batch, results: Sequence[Result], missing: set[Cell]
    ) -> None:
        """Grade and write the rows of some problems of a batch, after their particles.

        Args:
            batch: a call of the engine.
            results: of the problems that have ended.
            missing: cells whose rows are written; others exist.

        Raises:
            ResultsError: the system cannot write.
        """
        world = self._world
        rows = rows_of(batch, world, results)
        if self._particles is not None:
            problems = {problem.id: problem for problem in batch.problems}
            records = [
                record_of(
                    batch,
                    problems[result.problem_id],
                    result,
                    world.extract,
                    world.max_steps,
                    self._keep,
                )
                for result in results
            ]
            settings = method_settings(
                batch.source, world.max_steps, is_served=world.is_served
            )
            self._particles.append(records, world.settings | settings)
        texts_ids = {x.problem_id: id_of_texts(x.particles.texts) for x in results}
        self._results.append(
            (cell, row | {TEXTS_ID: texts_ids[cell.problem]})
            for cell, row in rows
            if cell in missing
        )


class NoRows(RowWriter):
    """Writes nothing, in a process whose results another one writes."""

    def write(
        self, batch: Batch, results: Sequence[Result], missing: set[Cell]
    ) -> None:
        """See `RowWriter.write`."""


class BackgroundWriter:
    """Grades and writes results in a thread, while others are computed.

    When the context ends, for whatever reason, all given results are written first.

    Args:
        writer: of the run; nothing else writes to its files meanwhile.
    """

    def __init__(self, writer: RowWriter) -> None:
        self._writer = writer
        self._executor = ThreadPoolExecutor(1, "row-writer")
        self._pending: Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether all given results are written."""
        return self._pending is None or self._pending.done()

    def write(
        self, batch: Batch, results: Sequence[Result], missing: set[Cell]
    ) -> None:
        """Begin to write results, and wait until the earlier ones are written.

        Args:
            batch, results, missing: see `RowWriter.write`.

        Raises:
            ResultsError: the earlier results could not be written.
        """
        earlier = self._pending
        with delay_signals():
            self._pending = self._executor.submit(
                self._writer.write, batch, results, missing
            )
        if earlier is not None:
            earlier.result()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._pending is not None:
            with delay_signals():
                wait([self._pending])
        self._executor.shutdown()
        # An earlier error is the one to be reported.
        if self._pending is not None and error_type is None:
            self._pending.result()
