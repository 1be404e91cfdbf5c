"""Curves from rows: accuracy, cost and confidence of every method at every budget."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.errors import ResultsError
from tsi.experiments.scaling.methods import sort_methods
from tsi.experiments.scaling.results import Cell
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
        probability: of the selected answer, 0 if there is none.
        num_right: particles with a right answer.
        expected: correctness expected over all subsets of a pool, for a method that
            never resamples; that of the selected answer otherwise.
        right_probability: posterior probability of right answers; NaN if rows of
            earlier versions lack it.
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
    num_right: Int[np.ndarray, "P S"]
    expected: Float[np.ndarray, "P S"]
    right_probability: Float[np.ndarray, "P S"]

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
            curves.setdefault(method, {})[budget] = _point(
                budget, [[rows[cell] for cell in line] for line in grid]
            )
    return curves


def _point(budget: int, grid: list[list[Mapping[str, Any]]]) -> Point:
    def table(field: str, default: float = np.nan) -> np.ndarray:
        # null in the file is None here; rows of earlier versions lack some fields.
        values = [[row.get(field) for row in line] for line in grid]
        return np.array(
            [[default if v is None else v for v in line] for line in values], np.float64
        )

    correct = table("correct", 0.0) > 0
    costs = ("generated_tokens", "reward_tokens", "flops", "seconds")
    means = {cost: float(table(cost).mean()) for cost in costs}
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
        num_right=table("num_right", 0.0).astype(np.int64),
        expected=expected,
        right_probability=table("right_probability"),
    )
