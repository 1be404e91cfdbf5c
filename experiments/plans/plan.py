"""What a scaling experiment runs: a plan, divided into batches.

A batch is (method, budget, seed, problems). Batches do not depend on which rows exist
already. Rows of methods that never resample are derived from one run at their
largest budget (:mod:`tsi.experiments.plans.shared_rollouts`).
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from tsi.errors import ConfigurationError
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import (
    budgets_of,
    expand_temperatures,
    get_method,
    get_methods,
    particles_per_run,
    sampler_of,
    shared_source_of,
)
from tsi.experiments.worlds.world import World
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.problem_ids import id_order, plain_id


class ExperimentPlan(NamedTuple):
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
    """One call of the engine, and the rows that it gives.

    Attributes:
        source: name of the method that is run.
        num_particles: N.
        seed: of the run.
        problems: in the order in which they start.
        outcomes: methods and budgets of the rows of each problem.
        at_once: number of problems that the engine runs at the same time.
    """

    source: str
    num_particles: int
    seed: int
    problems: list[Problem]
    outcomes: list[tuple[str, int]]
    at_once: int = 1

    @property
    def cells(self) -> list[Cell]:
        """The keys of the rows, in the order in which they are written."""
        return [
            Cell(method, budget, self.seed, problem.id)
            for method, budget in self.outcomes
            for problem in self.problems
        ]


def make_plan(
    methods: Sequence[str],
    budgets: Sequence[int],
    num_seeds: int,
    temperatures: Sequence[float] = (),
) -> ExperimentPlan:
    """Check arguments and make a plan, with methods in the order of tables.

    Args:
        methods: names of methods, or only "standard" or "all".
        budgets: rollouts N, in any order.
        num_seeds: number of seeds.
        temperatures: policy temperatures at which every method runs; without any,
            methods have the temperature of the run or of their names.

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
    if temperatures:
        names = tuple(expand_temperatures(names, temperatures))
    return ExperimentPlan(names, tuple(sorted(set(budgets))), num_seeds)


def check_budgets(plan: ExperimentPlan, max_steps: int, num_islands: int = 1) -> None:
    """Refuse budgets that a method cannot use, before any work.

    Args:
        plan: methods and budgets.
        max_steps: of a solution.
        num_islands: islands among which particles are divided.

    Raises:
        ConfigurationError: a method cannot use one of the plan's budgets.
    """
    for name in plan.methods:
        sampler = sampler_of(name, max_steps)
        budgets = budgets_of(name, plan.budgets, num_islands)
        if get_method(name).never_resamples:
            # Smaller budgets are subsets of the largest.
            budgets = budgets[-1:]
        for budget in budgets:
            try:
                size = particles_per_run(name, budget, num_islands)
                if isinstance(sampler, Explorer):
                    sampler.plan(size, max_steps)
                else:
                    # Without arrays: a budget that cannot fit is refused later.
                    jax.eval_shape(
                        lambda key, init=sampler.init, n=size: init(key, n),
                        jax.random.key(0),
                    )
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"{get_method(name).label} cannot run at N = {budget}: {error} "
                    "Choose other budgets, or leave the method out."
                ) from error


def sort_problems(problems: Sequence[Problem]) -> list[Problem]:
    """Sort problems by the length of their prompts, and then by their ids."""
    problems = [problem._replace(id=plain_id(problem.id)) for problem in problems]
    return sorted(problems, key=lambda x: (len(x.prompt), id_order(x.id)))


def batches(plan: ExperimentPlan, world: World) -> Iterator[Batch]:
    """The plan's batches, ordered by seed, then by method, then by budget.

    A batch has all problems, since the engine starts one as soon as another has left
    room. A method in rounds gives no result before the last problem of its batch has
    ended; its batches have as many problems as the engine runs at the same time, so
    that a kill costs no more. Problems are sorted by the length of their prompts.
    """
    problems = sort_problems(world.problems)
    shared_methods = [name for name in plan.methods if get_method(name).never_resamples]
    for seed in range(plan.num_seeds):
        runs: list[tuple[str, int, list[tuple[str, int]]]] = []
        sources: dict[str, list[str]] = {}
        for name in shared_methods:
            sources.setdefault(shared_source_of(name), []).append(name)
        for source, names in sources.items():
            outcomes = [(name, n) for name in names for n in plan.budgets]
            runs.append((source, max(plan.budgets), outcomes))
        for name in plan.methods:
            method = get_method(name)
            if name in shared_methods or (method.is_deterministic and seed > 0):
                continue
            runs += [
                (name, n, [(name, n)])
                for n in budgets_of(name, plan.budgets, world.num_islands)
            ]
        for source, num_particles, outcomes in runs:
            at_once = max_problems(world, source, num_particles)
            size = max(1, len(problems))
            if get_method(source).rounds is not None:
                size = block_size(len(problems), at_once)
            for start in range(0, len(problems), size):
                block = list(problems[start : start + size])
                yield Batch(source, num_particles, seed, block, outcomes, at_once)


def max_problems(world: World, name: str, num_particles: int) -> int:
    """Number of problems of a method that the engine runs at the same time."""
    size = particles_per_run(name, num_particles, world.num_islands)
    at_once = world.engine.problems_at_once(sampler_of(name, world.max_steps), size)
    islands = world.num_islands if get_method(name).is_divisible else 1
    return max(1, at_once // islands)


def block_size(num_problems: int, max_problems: int) -> int:
    """Number of problems per batch, for few batches of nearly equal sizes."""
    num_blocks = max(1, math.ceil(num_problems / max_problems))
    return max(1, math.ceil(num_problems / num_blocks))
