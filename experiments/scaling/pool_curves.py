"""Accuracy of selection from n of N samples, over all subsets of kept pools.

Rows of best-of-N and votes at n < N use the first n samples of the pool. Here every
subset of size n counts, which has the same mean and varies less
(:mod:`tsi.experiments.statistics.subsets`). It needs the particles beside the rows.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tsi.errors import ResultsError
from tsi.experiments.places import Place
from tsi.experiments.scaling.curves import Rows
from tsi.experiments.scaling.kept_particles import KeptRun
from tsi.experiments.scaling.methods import SHARED_SOURCE
from tsi.experiments.scaling.particle_files import read_particles
from tsi.experiments.statistics.accuracy import accuracy
from tsi.experiments.statistics.subsets import (
    best_of_subsets,
    vote_of_subsets,
    weighted_vote_of_subsets,
)
from tsi.problem_ids import id_order

METHODS = ("self_consistency", "best_of_n", "weighted_best_of_n")
"""What is selected from the pool, in the order of tables."""


class PoolPoint(NamedTuple):
    """Accuracy of one method at one size of the subsets.

    Args:
        accuracy: mean over problems, seeds and subsets.
        error: its standard error, clustered by problem.
        choice_error: the part that comes from the random choice of subsets; 0 where all
            subsets were used.
    """

    accuracy: float
    error: float
    choice_error: float


def pool_curves(
    rows: Rows, place: Place, num_subsets: int = 2000
) -> dict[str, dict[int, PoolPoint]]:
    """Method -> n -> accuracy over subsets of the pools of independent samples.

    Args:
        rows: of the run, which know the graded answers and the budgets.
        place: of its file of rows, with particles beside it.
        num_subsets: random subsets of each pool for weighted votes.

    Raises:
        ResultsError: there are no pools beside the rows, pools differ in size, or rows
            do not tell which samples of a pool are right.
    """
    pools = [run for run in read_particles(place) if run.key.method == SHARED_SOURCE]
    sizes = {run.key.num_particles for run in pools}
    if len(sizes) != 1:
        raise ResultsError(
            f"The particles beside {place} have pools of independent samples of "
            f"{len(sizes)} sizes; run self_consistency or best_of_n in one plan."
        )
    budgets = sorted(
        {cell.budget for cell in rows if cell.method in METHODS and cell.budget > 0}
    )
    found: dict[str, dict[int | str, list[np.ndarray]]] = {name: {} for name in METHODS}
    choice = {name: np.zeros(len(budgets)) for name in METHODS}
    for run in pools:
        correct = _correct(run, rows)
        for name, (means, errors) in _selections(
            run, correct, budgets, num_subsets
        ).items():
            found[name].setdefault(run.key.problem, []).append(means)
            choice[name] += errors**2
    curves: dict[str, dict[int, PoolPoint]] = {}
    for name, by_problem in found.items():
        problems = sorted(by_problem, key=id_order)
        table = np.array([by_problem[problem] for problem in problems])
        curves[name] = {
            n: PoolPoint(
                *accuracy(table[:, :, i]), float(choice[name][i] ** 0.5 / len(pools))
            )
            for i, n in enumerate(budgets)
        }
    return curves


def _selections(
    run: KeptRun, correct: np.ndarray, budgets: list[int], num_subsets: int
) -> Mapping[str, tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]]:
    answers, log_weights = run.particles.answers, run.particles.log_weights
    rewards = np.nan_to_num(run.particles.rewards, nan=0.0)
    # Weights are relative: those of a subset are normalised when it is drawn.
    weights = np.exp(log_weights - log_weights.max())
    has_answer = np.array([answer is not None for answer in answers])
    ranks = np.where(has_answer, rewards, -np.inf)
    return {
        "self_consistency": vote_of_subsets(answers, correct, budgets),
        "best_of_n": best_of_subsets(ranks, correct, budgets),
        "weighted_best_of_n": weighted_vote_of_subsets(
            answers, weights, correct, budgets, num_subsets=num_subsets
        ),
    }


def _correct(run: KeptRun, rows: Rows) -> np.ndarray:
    """Which samples of a pool are right: those with an answer that was graded right."""
    key = run.key
    here = [(cell, row) for cell, row in rows.items() if cell.problem == key.problem]
    right = {row["selected"] for _, row in here if row["correct"]}
    right |= {str(row["answer"]) for _, row in here}
    correct = np.array([answer in right for answer in run.particles.answers])
    counts = {
        row["num_right"]
        for cell, row in here
        if cell.method in METHODS
        and (cell.budget, cell.seed) == (key.num_particles, key.seed)
    }
    if counts != {int(correct.sum())}:
        raise ResultsError(
            f"The rows of problem {key.problem!r} count {sorted(counts)} right samples "
            f"of a pool in which {int(correct.sum())} answers are known to be right. "
            "Answers that no method selected may be right; select by more methods."
        )
    return correct
