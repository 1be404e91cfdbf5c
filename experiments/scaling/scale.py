"""The scaling experiment: accuracy of every method at every budget, with error bars.

A plan is divided into batches: (method, budget, seed, block of problems). Blocks do not
depend on what is already done, and rows are written block by block. If a signal stops a
block, the rows of its finished problems are written too, and a resumed run computes the
others. Rows of methods that never resample are taken from one run at the largest budget
(`shared_rollouts.py`).

Keys: all methods and budgets of a seed use `key(seed)`, so they share random numbers.
"""

from collections.abc import Container, Sequence
from typing import Any

import jax
from tqdm import tqdm

from tsi.engine.interruption import postponed
from tsi.errors import ProblemError, ProcessError, Stopped
from tsi.experiments.places import Place
from tsi.experiments.scaling.methods import METHODS, method_settings, sampler_of
from tsi.experiments.scaling.plan import (
    Batch,
    Plan,
    batches,
    check_budgets,
    sort_problems,
)
from tsi.experiments.scaling.process_group import ALONE, Group
from tsi.experiments.scaling.results import Cell, ResultsFile
from tsi.experiments.scaling.rows import rows_of
from tsi.experiments.scaling.run_method import run_method
from tsi.experiments.worlds.world import World
from tsi.problem_ids import check_ids
from tsi.results.result import Result


def run_plan(
    plan: Plan,
    world: World,
    path: Place,
    *,
    progress: bool = True,
    group: Group = ALONE,
) -> dict[Cell, dict[str, Any]]:
    """Compute every row that the file lacks.

    Args:
        plan: methods, budgets and seeds.
        world: a task with its models.
        path: of the file of rows; an existing file is continued.
        progress: show a progress bar with the time left, in rollouts.
        group: the processes of this run; each computes the rows of its share of the
            problems, and waits for the others.

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
    failures: dict[Any, Exception] = {}
    check_ids(world.problems)
    check_budgets(plan, world.max_steps)
    for batch in batches(plan, world._replace(problems=world.problems[:1])):
        method = sampler_of(batch.source, world.max_steps)
        world.engine.check_fits(method, batch.num_particles)
    # Settings of all methods, because the file may have rows of other plans.
    sampler_settings = {
        name: method_settings(name, world.max_steps) for name in METHODS
    }
    shard = {"index": group.index, "count": group.count}
    with ResultsFile(path, world.settings, sampler_settings, **shard) as results:
        group.agree(facts_of(plan, world, path))
        if group.is_first:
            results.check_sharing()
        share = group.share(sort_problems(world.problems))
        plan_batches = list(batches(plan, world._replace(problems=share)))
        sizes = [batch.num_particles * len(batch.problems) for batch in plan_batches]
        is_done_list = [not results.find_missing(batch.cells) for batch in plan_batches]
        with tqdm(
            total=sum(sizes),
            initial=sum(s for s, d in zip(sizes, is_done_list, strict=True) if d),
            unit=" rollouts",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not (progress and group.is_first),
        ) as bar:
            for batch, size, is_done in zip(
                plan_batches, sizes, is_done_list, strict=True
            ):
                if is_done:
                    continue
                bar.set_description(
                    f"{batch.source} N={batch.num_particles} seed {batch.seed}"
                )
                missing = set(results.find_missing(batch.cells))
                batch_results, batch_failures, stopped = run_batch(
                    batch, world, missing
                )
                failures |= batch_failures
                with postponed():
                    rows = rows_of(batch, world, batch_results)
                    results.append(row for row in rows if row[0] in missing)
                if stopped is not None:
                    raise stopped
                bar.update(size)
        if not group.is_first:
            results.close()
        remote_failure = _wait_for_others(group, failures)
        if failures:
            raise ProblemError(failures)
        if remote_failure is not None:
            raise remote_failure
        if group.is_first:
            results.reload()
            results.fold()
        return dict(results.rows)


def facts_of(plan: Plan, world: World, path: Place) -> dict[str, Any]:
    """What all processes of a run must agree on."""
    settings = {k: v for k, v in world.settings.items() if k != "commit"}
    problems = [list(problem) for problem in sort_problems(world.problems)]
    return {**plan._asdict(), **settings, "problems": problems, "out": str(path)}


def _wait_for_others(
    group: Group, failures: dict[Any, Exception]
) -> ProcessError | None:
    """Wait for the other processes, and return the failures of their problems."""
    texts = group.gather("rows", str(ProblemError(failures)) if failures else "")
    messages = [f"Process {i}: {text}" for i, text in enumerate(texts) if text]
    return ProcessError(" ".join(messages)) if messages else None


def run_batch(
    batch: Batch, world: World, missing: Container[Cell]
) -> tuple[Sequence[Result], dict[Any, Exception], Stopped | None]:
    """Run the problems of a batch that lack a row.

    Args:
        batch: a call of the engine.
        world: a task with its models.
        missing: cells without a row.

    Returns:
        The results, the errors of failed problems, and the signal that stopped the
        batch or None. Problems that failed or did not finish have no result.
    """
    problem_ids = {cell.problem for cell in batch.cells if cell in missing}
    problems = [problem for problem in batch.problems if problem.id in problem_ids]
    key = jax.random.key(batch.seed)
    try:
        results = run_method(world, batch.source, key, problems, batch.num_particles)
    except ProblemError as error:
        return error.results, error.failures, None
    except Stopped as error:
        return error.results, {}, error
    return results, {}, None
