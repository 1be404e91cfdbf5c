"""Curves from rows: accuracy, cost and confidence of every method at every budget."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from tsi.errors import ResultsError
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import sort_methods
from tsi.experiments.statistics.accuracy import accuracy
from tsi.problem_ids import id_order

Rows = Mapping[Cell, Mapping[str, Any]]


class Point(NamedTuple):
    """One method at one budget.

    Args:
        correct: for each problem and seed, of the answer that was selected.
        accuracy: mean of the expected correctness over problems and seeds.
        error: its standard error, clustered by problem.
        rollouts: the budget N.
        generated_tokens: mean per problem, as all costs below.
        reward_tokens: read by the reward model.
        flops: of both models.
        seconds: time of the batch, with compilation, divided by its problems; NaN if
            rows were taken from a larger run.
        probability: of the selected answer, 0 if there is none; NaN if rows lack it.
        num_right: particles with a right answer; NaN if rows lack it.
        expected: correctness expected over all subsets of a pool, for a method that
            never resamples; that of the selected answer otherwise.
        right_probability: posterior probability of right answers; NaN if rows of
            earlier versions lack it.
        problems, seeds: ids of the problems and numbers of the seeds, in the order of
            the tables.
        costs: the table of each mean cost, by its name.
    """

    correct: Bool[np.ndarray, "P S"]
    accuracy: float
    error: float
    rollouts: int
    generated_tokens: float
    reward_tokens: float
    flops: float
    seconds: float
    probability: Float[np.ndarray, "P S"]
    num_right: Float[np.ndarray, "P S"]
    expected: Float[np.ndarray, "P S"]
    right_probability: Float[np.ndarray, "P S"]
    problems: tuple[int | str, ...] = ()
    seeds: tuple[int, ...] = ()
    costs: Mapping[str, Float[np.ndarray, "P S"]] = MappingProxyType({})

    @property
    def all_tokens(self) -> float:
        """Tokens that the policy generated and that the reward model read."""
        return self.generated_tokens + self.reward_tokens


Curves = dict[str, dict[int, Point]]


class Unit(NamedTuple):
    """A unit of cost.

    Args:
        label: for axes, with the unit of one problem.
        base: of the logarithmic axis.
    """

    label: str
    base: int


UNITS = {
    "rollouts": Unit("rollouts N per problem", 2),
    "generated_tokens": Unit("generated tokens per problem", 2),
    "all_tokens": Unit("tokens per problem, generated and read by the reward model", 2),
    "flops": Unit("FLOPs per problem, of both models", 10),
    "seconds": Unit("seconds per problem, with compilation", 10),
}
"""By name of the attribute of a `Point`, which is a mean over problems."""


def curves_of(rows: Rows) -> Curves:
    """Method -> budget -> point, in the order of tables.

    Raises:
        ResultsError: a method has problems or seeds at one budget that it lacks at
            another.
    """
    curves: Curves = {}
    for method in sort_methods({cell.method for cell in rows}):
        method_cells = [cell for cell in rows if cell.method == method]
        seeds = sorted({cell.seed for cell in method_cells})
        problems = sorted({cell.problem for cell in method_cells}, key=id_order)
        for budget in sorted({cell.budget for cell in method_cells}):
            grid = [
                [Cell(method, budget, seed, problem) for seed in seeds]
                for problem in problems
            ]
            missing = [cell for line in grid for cell in line if cell not in rows]
            if missing:
                raise ResultsError(
                    f"{len(missing)} rows are missing, the first for {missing[0]}; run "
                    "the same command again to finish them."
                )
            point = _point(budget, [[rows[cell] for cell in line] for line in grid])
            curves.setdefault(method, {})[budget] = point._replace(
                problems=tuple(problems), seeds=tuple(seeds)
            )
    return curves


def on_common_problems(
    a: Point, b: Point, *, same_seeds: bool = False
) -> tuple[Point, Point] | None:
    """Two points on the problems that both have; None if there are none.

    If both have several seeds, they are those that both have, too.

    Args:
        a, b: of two methods, from `curves_of`.
        same_seeds: whether a single seed must be one of the other point's.
    """
    has_one = min(len(a.seeds), len(b.seeds)) == 1
    is_any = a.seeds == b.seeds or (has_one and not same_seeds)
    if a.problems == b.problems and is_any:
        return a, b
    others = set(b.problems)
    problems = [problem for problem in a.problems if problem in others]
    common = [seed for seed in a.seeds if seed in b.seeds]
    if not problems or not (common or is_any):
        return None
    return (
        _restrict(a, problems, a.seeds if is_any else common),
        _restrict(b, problems, b.seeds if is_any else common),
    )


def _restrict(
    point: Point, problems: Sequence[int | str], seeds: Sequence[int]
) -> Point:
    """The point of some of its problems and seeds."""
    rows = {problem: i for i, problem in enumerate(point.problems)}
    places = np.ix_(
        [rows[problem] for problem in problems],
        [point.seeds.index(seed) for seed in seeds],
    )
    costs = {name: table[places] for name, table in point.costs.items()}
    means: dict[str, Any] = {name: float(table.mean()) for name, table in costs.items()}
    mean, error = accuracy(point.expected[places])
    return point._replace(
        **means,
        correct=point.correct[places],
        accuracy=mean,
        error=error,
        probability=point.probability[places],
        num_right=point.num_right[places],
        expected=point.expected[places],
        right_probability=point.right_probability[places],
        problems=tuple(problems),
        seeds=tuple(seeds),
        costs=costs,
    )


def _point(budget: int, grid: list[list[Mapping[str, Any]]]) -> Point:
    def table(field: str, default: float = np.nan) -> np.ndarray:
        # null in the file is None here; rows of earlier versions and of other programs
        # lack some fields, about which nothing is known.
        values = [[row.get(field, np.nan) for row in line] for line in grid]
        return np.array(
            [[default if v is None else v for v in line] for line in values], np.float64
        )

    correct = table("correct", 0.0) > 0
    names = ("generated_tokens", "reward_tokens", "flops", "seconds")
    costs = {name: table(name) for name in names}
    means: dict[str, Any] = {n: float(values.mean()) for n, values in costs.items()}
    expected = table("expected_correct")
    expected = np.where(np.isnan(expected), correct, expected)
    mean, error = accuracy(expected)
    return Point(
        correct,
        mean,
        error,
        budget,
        **means,
        probability=table("probability", 0.0),
        num_right=table("num_right", 0.0),
        expected=expected,
        right_probability=table("right_probability"),
        costs=costs,
    )
