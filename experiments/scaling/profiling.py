"""`tsi profile`: where the time and the memory of a run go."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from tsi.engine.meters.report import Report, report_of_runs
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.reports.report import markdown
from tsi.experiments.worlds.world import World
from tsi.results.result import Result

NAMES = {
    "prefill": "prompts read (prefill)",
    "decode": "steps written (decode)",
    "reward": "steps read by the reward",
    "repeat": "steps repeated",
    "decide": "weighing, resampling and forks",
    "move": "caches moved",
    "host": "host",
    "compile": "compilation",
    "idle": "idle",
}
"""Names in the table for the parts of :data:`tsi.engine.meters.clock.PARTS`."""


class Recorder:
    """An engine that times each program of its runs and keeps their reports.

    A method that runs in rounds calls `run` several times; all others call `stream`.

    Attributes:
        reports: of all runs so far.

    Args:
        engine: runs the methods.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.reports: list[Report] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, *arguments: Any, **settings: Any) -> list[Result]:
        """Run the engine and return its results; arguments are those of the engine."""
        with self._record():
            return self._engine.run(*arguments, **settings, exact=True)

    def stream(self, *arguments: Any, **settings: Any) -> Iterator[Result]:
        """Run the engine and yield each result; arguments are those of the engine."""
        with self._record():
            yield from self._engine.stream(*arguments, **settings, exact=True)

    @contextlib.contextmanager
    def _record(self) -> Iterator[None]:
        """A context that keeps the report of the engine's run in it."""
        try:
            yield
        finally:
            if self._engine.report is not None:
                self.reports.append(self._engine.report)


def profile_run(
    world: World, method: str, budget: int, seed: int, trace: Path | None = None
) -> Report:
    """Run a method on all problems of a world and time its programs.

    Args:
        world: a task with its models.
        method: its name.
        budget: rollouts N.
        seed: of the random numbers.
        trace: folder for a trace of `jax.profiler`; None for no trace.
    """
    recorder = Recorder(world.engine)
    engine: Any = recorder
    tracing = contextlib.nullcontext() if trace is None else jax.profiler.trace(trace)
    with tracing:
        run_method(
            world._replace(engine=engine),
            method,
            jax.random.key(seed),
            world.problems,
            budget,
        )
    return report_of_runs(recorder.reports)


def table_of(report: Report) -> str:
    """A report as a table of times that sum to the wall time, and counts below it."""
    wall, parts = report.wall, report.parts()
    lines = [["", "seconds", "share", "compiling", "model programs"]]
    for part, seconds in [*parts.items(), ("all", wall)]:
        compiling = report.compiling.get(part, 0.0) / report.groups
        programs = report.model_programs.get(part)
        lines.append(
            [
                NAMES.get(part, part),
                f"{seconds:.2f}",
                f"{100 * seconds / wall if wall else 0:.0f} %",
                f"{compiling:.2f}" if compiling else "",
                "" if programs is None else f"{programs}",
            ]
        )
    cache, run_seconds = report.cache, wall - parts.get("compile", 0.0)

    def rate(tokens: int) -> str:
        if not tokens:
            return "0"
        return (
            f"{tokens:,} ({tokens / wall:,.0f} per second, "
            f"{tokens / run_seconds:,.0f} without compilation)"
        )

    moves = []
    if report.weight_transfers:
        moves = [
            f"weights copied            {report.weight_transfers} times to a device"
        ]
    owner = "the process" if jax.default_backend() == "cpu" else "a device"
    return "\n".join(
        [
            markdown(lines),
            "",
            f"tokens written            {rate(report.useful)}",
            f"tokens read by the reward {rate(report.read)}",
            f"row utilisation           {report.utilisation:.2f} "
            f"({report.useful:,} of {report.computed:,} computed tokens)",
            f"caches in blocks          at most {_megabytes(cache.num_bytes)}: "
            f"{_megabytes(cache.shared)} shared, {_megabytes(cache.private)} private; "
            f"{_megabytes(cache.unshared)} if each row had its own",
            f"peak memory               {_megabytes(report.peak_bytes)} of {owner}",
            f"programs                  {report.programs} compiled or read from disk, "
            f"{sum(report.model_programs.values())} of them with models",
            *moves,
        ]
    )


def _megabytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"
