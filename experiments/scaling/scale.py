"""The scaling experiment: accuracy of every method at every budget, with error bars.

A plan is divided into batches: (method, budget, seed, problems). They do not depend on
what is already done. Rows are written while a batch runs (``chunks.py``), and a resumed
run computes the others. Rows of methods that never resample are taken from one run at
the largest budget (`plans/shared_rollouts.py`).

Keys: all methods and budgets of a seed use `key(seed)`, so they share random numbers.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from tsi.engine.agreement import stop_together
from tsi.errors import ProblemError, ProcessError, ResultsError
from tsi.experiments.files.places import Place
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import (
    MethodSettings,
    particles_per_run,
    sampler_of,
)
from tsi.experiments.plans.plan import (
    ExperimentPlan,
    batches,
    check_budgets,
    sort_problems,
)
from tsi.experiments.processes.process_group import ALONE, Group, digest
from tsi.experiments.rows.kept_particles import Keep
from tsi.experiments.rows.particle_files import ParticlesFile
from tsi.experiments.rows.results import ResultsFile
from tsi.experiments.rows.row_writer import BackgroundWriter, NoRows, RowWriter
from tsi.experiments.scaling.chunks import Chunks
from tsi.experiments.scaling.plan_check import check_problems, print_plan_change
from tsi.experiments.scaling.progress import Progress
from tsi.experiments.worlds.world import World
from tsi.models.partition import processes_of, spans_processes
from tsi.problem_ids import check_ids


def run_plan(
    plan: ExperimentPlan,
    world: World,
    path: Place,
    *,
    progress: bool = True,
    group: Group = ALONE,
    keep: Keep = "solutions",
    continue_anyway: bool = False,
) -> dict[Cell, dict[str, Any]]:
    """Compute every row that the file lacks.

    Args:
        plan: methods, budgets and seeds.
        world: a task with its models.
        path: of the file of rows; an existing file is continued.
        progress: show a progress bar with the time left.
        group: the processes of this run; each computes the rows of its share of the
            problems, and waits for the others.
        keep: what is kept of the particles, in a separate file: "solutions" (texts,
            answers, weights, rewards), "all" (each step too) or "none".
        continue_anyway: continue a file of rows of other versions or devices.

    Returns:
        All rows of the file; in processes other than the first, the rows known to it.

    Raises:
        ConfigurationError: a method cannot use one of the budgets, problems share an id
            or have none, or processes were started with different arguments.
        ProblemError: some problems failed; raised after all other rows are written.
        ProcessError: another process, or one of its problems, failed.
        ResultsError: the file cannot be continued.
        Stopped: a signal came; the rows of finished problems are written.
    """
    check_ids(world.problems)
    check_budgets(plan, world.max_steps, world.num_islands)
    for batch in batches(plan, world._replace(problems=world.problems[:1])):
        method = sampler_of(batch.source, world.max_steps)
        size = particles_per_run(batch.source, batch.num_particles, world.num_islands)
        world.engine.check_fits(method, size)
    with (
        ResultsFile(
            path,
            world.settings,
            # Of all methods, for rows of other plans.
            MethodSettings(world.max_steps, is_served=world.is_served),
            index=group.index,
            count=group.count,
            continue_anyway=continue_anyway,
        ) as results,
        _particles_file(path, group.index, keep) as particles,
    ):
        group.hold_together(processes_of(world.engine.mesh))
        group.agree(facts_of(plan, world, path, keep, continue_anyway))
        if spans_processes(world.engine.mesh):
            check_rows_found(group, path, results.rows)
        check_problems(path, results.rows, world.problems)
        if group.is_first:
            results.check_sharing()
            print_plan_change(path, results.rows, plan, world.problems)
        writer_type = RowWriter if group.writes else NoRows
        writer = writer_type(world, results, particles, keep)
        share = group.share(sort_problems(world.problems))
        share_world = world._replace(problems=share)
        failures = _run_batches(plan, share_world, writer, progress and group.is_first)
        if not group.is_first:
            results.close()
            if particles is not None:
                particles.close()
        # What failed is the same in all processes of a model.
        remote_failure = _wait_for_others(group, failures if group.writes else {})
        if failures:
            raise ProblemError(failures)
        if remote_failure is not None:
            raise remote_failure
        if group.is_first:
            if particles is not None:
                particles.fold()
            results.reload()
            results.fold()
        return dict(results.rows)


def _run_batches(
    plan: ExperimentPlan, world: World, writer: RowWriter, is_visible: bool
) -> dict[Any, Exception]:
    """Run what lacks rows, and return the errors of problems that failed."""
    failures: dict[Any, Exception] = {}
    plan_batches = list(batches(plan, world))
    is_done_list = [not writer.find_missing(batch) for batch in plan_batches]
    with (
        Progress(
            plan_batches,
            is_done_list,
            visible=is_visible,
            is_length_known=world.typical_tokens is not None,
            engine=None if world.is_served else world.engine,
        ) as bar,
        BackgroundWriter(writer) as background,
        stop_together(world.engine.mesh) as check_stop,
    ):
        for batch, is_done in zip(plan_batches, is_done_list, strict=True):
            if is_done:
                continue
            check_stop()
            missing = writer.find_missing(batch)
            with Chunks(batch, missing, background, bar) as chunks:
                try:
                    chunks.run(world)
                except ProblemError as error:
                    failures |= error.failures
            bar.end()
        check_stop()
    return failures


def check_rows_found(group: Group, path: Place, rows: Mapping[Cell, Any]) -> None:
    """Check that processes with one model have found the same rows to be computed.

    Raises:
        ResultsError: they have not.
    """
    found = group.gather("rows found", digest(sorted(map(str, rows))))
    if len(set(found)) > 1:
        raise ResultsError(
            f"The processes have found different rows in {path}. A network file system "
            "may show new files late; run the same command again."
        )


@contextlib.contextmanager
def _particles_file(
    path: Place, index: int, keep: Keep
) -> Iterator[ParticlesFile | None]:
    if keep == "none":
        yield None
        return
    with ParticlesFile(path, index) as particles:
        yield particles


def facts_of(
    plan: ExperimentPlan, world: World, path: Place, keep: Keep, continue_anyway: bool
) -> dict[str, Any]:
    """What all processes of a run must agree on."""
    # Each process has measured its server itself.
    unshared = ("commit", "server_seeds")
    settings = {k: v for k, v in world.settings.items() if k not in unshared}
    problems = [list(problem) for problem in sort_problems(world.problems)]
    return {
        **plan._asdict(),
        **settings,
        "problems": problems,
        "out": str(path),
        "keep": keep,
        "continue_anyway": continue_anyway,
    }


def _wait_for_others(
    group: Group, failures: dict[Any, Exception]
) -> ProcessError | None:
    """Wait for the other processes, and return the failures of their problems."""
    texts = group.gather("rows", str(ProblemError(failures)) if failures else "")
    messages = [f"Process {i}: {text}" for i, text in enumerate(texts) if text]
    return ProcessError(" ".join(messages)) if messages else None
