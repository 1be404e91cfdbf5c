"""The scaling experiment: accuracy of every method at every budget, with error bars.

A plan is divided into batches: (method, budget, seed, block of problems). Blocks do not
depend on what is already done, and rows are written block by block. If a signal stops a
block, the rows of its finished problems are written too, and a resumed run computes the
others. Rows of methods that never resample are taken from one run at the largest budget
(`shared_rollouts.py`).

Keys: all methods and budgets of a seed use `key(seed)`, so they share random numbers.
"""

import math
from collections.abc import Container, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from tsi.engine.adaptive import run_rounds
from tsi.engine.interruption import postponed
from tsi.errors import ConfigurationError, ProblemError, ProcessError, Stopped
from tsi.experiments.places import Place
from tsi.experiments.scaling.distributed import ALONE, Group
from tsi.experiments.scaling.methods import (
    METHODS,
    SHARED_SOURCE,
    budgets_of,
    get_method,
    get_methods,
    method_settings,
    sampler_of,
)
from tsi.experiments.scaling.results import FREE_SETTINGS, Cell, ResultsFile
from tsi.experiments.scaling.shared_rollouts import first_rollouts
from tsi.experiments.worlds.world import World
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.problem_ids import check_ids, id_order, plain_id
from tsi.results.build import price_without_reward
from tsi.results.estimand import estimand_of
from tsi.results.notes import reward_spread
from tsi.results.result import Result


class Plan(NamedTuple):
    """Methods, budgets and seeds that are compared.

    Args:
        methods: names of methods.
        budgets: rollouts N.
        num_seeds: number of seeds 0, 1, ...
    """

    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    num_seeds: int = 1


class Batch(NamedTuple):
    """One call of the engine, and the rows that it gives."""

    source: str
    num_particles: int
    seed: int
    problems: list[Problem]
    outcomes: list[tuple[str, int]]

    @property
    def cells(self) -> list[Cell]:
        """The keys of the rows, in the order in which they are written."""
        return [
            Cell(method, budget, self.seed, problem.id)
            for method, budget in self.outcomes
            for problem in self.problems
        ]


def make_plan(methods: Sequence[str], budgets: Sequence[int], num_seeds: int) -> Plan:
    """Check arguments and make a plan, with methods in the order of tables.

    Args:
        methods: names of methods, or "standard" or "all" alone.
        budgets: rollouts N, in any order.
        num_seeds: number of seeds.

    Raises:
        UnknownNameError: there is no such method.
        ConfigurationError: a number is not positive, or there are no methods or
            budgets.
    """
    numbers = {"seeds": num_seeds}
    numbers |= {f"budget {i}": budget for i, budget in enumerate(budgets)}
    invalid = [f"{name} = {value}" for name, value in numbers.items() if value < 1]
    if invalid or not budgets or not methods:
        raise ConfigurationError(
            f"A plan needs methods, budgets and positive numbers: "
            f"{', '.join(invalid) or 'methods or budgets are missing'}."
        )
    names = tuple(get_methods(methods))
    return Plan(names, tuple(sorted(set(budgets))), num_seeds)


def check_budgets(plan: Plan, max_steps: int) -> None:
    """Refuse budgets that a method cannot use, before any work.

    Raises:
        ConfigurationError: a method cannot use one of the plan's budgets.
    """
    for name in plan.methods:
        sampler = sampler_of(name, max_steps)
        for budget in budgets_of(name, plan.budgets):
            try:
                if isinstance(sampler, Explorer):
                    sampler.plan(budget, max_steps)
                else:
                    sampler.init(jax.random.key(0), budget)
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{get_method(name).label} cannot run at N = {budget}: {error} "
                    "Choose other budgets, or leave the method out."
                ) from error


def sort_problems(problems: Sequence[Problem]) -> list[Problem]:
    """Sort problems by the length of their prompts, and then by their ids."""
    problems = [problem._replace(id=plain_id(problem.id)) for problem in problems]
    return sorted(problems, key=lambda x: (len(x.prompt), id_order(x.id)))


def batches(plan: Plan, world: World) -> Iterator[Batch]:
    """The plan's batches, ordered by seed, then by method, then by budget.

    A batch has as many problems as the engine works on at once. Problems are sorted by
    the length of their prompts, because a batch takes as long as its longest solution,
    and long prompts tend to have long solutions.
    """
    problems = sort_problems(world.problems)
    shared_methods = [name for name in plan.methods if get_method(name).independent]
    for seed in range(plan.num_seeds):
        runs: list[tuple[str, int, list[tuple[str, int]]]] = []
        if shared_methods:
            outcomes = [(name, n) for name in shared_methods for n in plan.budgets]
            runs.append((SHARED_SOURCE, max(plan.budgets), outcomes))
        for name in plan.methods:
            method = get_method(name)
            if name in shared_methods or (method.deterministic and seed > 0):
                continue
            runs += [(name, n, [(name, n)]) for n in budgets_of(name, plan.budgets)]
        for source, num_particles, outcomes in runs:
            size = block_size(len(problems), max_problems(world, source, num_particles))
            for start in range(0, len(problems), size):
                block = list(problems[start : start + size])
                yield Batch(source, num_particles, seed, block, outcomes)


def max_problems(world: World, name: str, num_particles: int) -> int:
    """Number of problems of a method that the engine works on at once."""
    rounds = get_method(name).rounds
    if rounds is not None:
        num_particles = rounds(num_particles).size
    sampler = sampler_of(name, world.max_steps)
    return world.engine.problems_at_once(sampler, num_particles)


def block_size(num_problems: int, max_problems: int) -> int:
    """Number of problems per batch: the fewest batches, of nearly equal sizes."""
    num_blocks = max(1, math.ceil(num_problems / max_problems))
    return max(1, math.ceil(num_problems / num_blocks))


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
            results.check_shared()
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
    settings = {k: v for k, v in world.settings.items() if k not in FREE_SETTINGS}
    problems = [list(problem) for problem in sort_problems(world.problems)]
    return {**plan._asdict(), **settings, "problems": problems, "out": str(path)}


def _wait_for_others(
    group: Group, failures: dict[Any, Exception]
) -> ProcessError | None:
    """Wait for the other processes, and return the failures of their problems."""
    texts = group.gather("rows", str(ProblemError(failures)) if failures else "")
    messages = [f"Process {i}: {text}" for i, text in enumerate(texts) if text]
    return ProcessError(" ".join(messages)) if messages else None


def run_method(
    world: World, name: str, key: Any, problems: Sequence[Problem], num_particles: int
) -> list[Result]:
    """Run a method with its own temperatures, rounds and costs.

    Args:
        world: a task with its models.
        name: of the method.
        key: a typed key.
        problems: any number of problems.
        num_particles: N; for a method that stops early, the most that it uses.
    """
    method, sampler = get_method(name), sampler_of(name, world.max_steps)
    settings: dict[str, Any] = {
        "extract": world.extract,
        "temperature": method.temperature,
    }
    if method.rounds is not None:
        rounds = method.rounds(num_particles)
        settings["reads_reward"] = method.reads_reward
        try:
            return run_rounds(world.engine, sampler, key, problems, rounds, **settings)
        except (ProblemError, Stopped) as error:
            # The results of one round are not results of the method.
            error.results = ()
            raise
    if method.proposal_temperature is not None:
        proposal_temperature = (
            world.settings["temperature"] * method.proposal_temperature
        )
        settings["proposal_temperature"] = proposal_temperature
    is_free = not (method.reads_reward or method.independent or method.deterministic)
    estimand = estimand_of(sampler, reads_reward=method.reads_reward)

    def adapt_result(result: Result) -> Result:
        result = result._replace(estimand=estimand)
        return price_without_reward(result) if is_free else result

    try:
        results = world.engine.run(sampler, key, problems, num_particles, **settings)
    except (ProblemError, Stopped) as error:
        error.results = tuple(map(adapt_result, error.results))
        raise
    return [adapt_result(result) for result in results]


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


def rows_of(
    batch: Batch, world: World, batch_results: Sequence[Result]
) -> list[tuple[Cell, dict[str, Any]]]:
    """The rows of a batch's results, in the order of its cells."""
    results = {result.problem_id: result for result in batch_results}
    rows = []
    for name, budget in batch.outcomes:
        method = get_method(name)
        sampler = sampler_of(name, world.max_steps)
        estimand = estimand_of(sampler, reads_reward=method.reads_reward)
        for problem in batch.problems:
            result = results.get(problem.id)
            if result is None:
                continue
            if method.independent or method.deterministic:
                result = first_rollouts(result, budget, estimand)
            cell = Cell(name, budget, batch.seed, problem.id)
            rows.append((cell, outcome(world, problem, result)))
    return rows


def outcome(world: World, problem: Problem, result: Result) -> dict[str, Any]:
    """The fields of a row besides its cell and settings."""
    given_answers = [answer for answer in result.answers if answer is not None]
    answers = {*given_answers, result.selected} - {None}
    is_right = {answer: world.is_correct(problem, answer) for answer in answers}
    ledger, steps, diagnostics = result.ledger, result.steps, result.diagnostics
    return {
        "prompt": problem.prompt,
        "answer": problem.answer,
        "selected": result.selected,
        "correct": is_right.get(result.selected, False),
        "probability": _round(result.answer_posterior.get(result.selected or "", 0)),
        "unanswered": _round(result.unanswered),
        "num_answered": len(given_answers),
        "num_right": sum(is_right[answer] for answer in given_answers),
        "mean_reward": _round(np.mean(result.rewards)),
        "reward_spread": _round(reward_spread(result)),
        "log_evidence": _round(result.log_evidence),
        "log_evidence_variance": _round(result.evidence.variance),
        "pareto_k": _round(diagnostics.pareto_k),
        "unique_eves": int(steps.unique_ancestors[0]),
        "min_ess": _round(steps.ess.min()),
        "num_distinct": result.particles.num_distinct,
        "acceptance_rate": _round(diagnostics.acceptance_rate),
        "num_steps": len(steps.ancestors),
        "rollouts": ledger.rollouts,
        "num_recoveries": diagnostics.num_recoveries,
        "num_invalid": diagnostics.num_invalid,
        "num_truncated": diagnostics.num_truncated,
        "num_thinking": result.particles.num_thinking,
        "generated_tokens": ledger.generated_tokens,
        "reward_tokens": ledger.reward_tokens,
        "flops": ledger.flops,
        "seconds": _round(ledger.seconds),
    }


def _round(value: Any) -> float | None:
    """Round to six digits; None, null in JSON, if the value is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
