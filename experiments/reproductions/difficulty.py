"""The best method depends on the difficulty of the problem.

Source: Snell et al. 2024, arXiv 2408.03314: search is best on problems of medium
difficulty, best-of-N on easy ones. Liu et al. 2025, arXiv 2502.06703: it also depends
on the policy and the reward model. Difficulty is the policy's own pass rate, here in
quarters of the problems and from 32 samples that no method sees, there in fifths and
from 2,048.
Small: problems of chain and Countdown together.
Cost: 500 problems x 6 methods; small: 8 minutes on 2 cores.
Command: tsi reproduce difficulty [--small]
"""

from collections.abc import Mapping

import numpy as np

from tsi.experiments.plans.methods import get_method
from tsi.experiments.reports.curves import Curves, Point
from tsi.experiments.reports.report import markdown, percent
from tsi.experiments.reproductions.published_models import (
    EMBEDDED_TASKS,
    embedded_experiment,
    published_experiment,
)
from tsi.experiments.statistics.accuracy import accuracy
from tsi.experiments.statistics.difficulty import difficulty_bins

METHODS = (
    "self_consistency",
    "best_of_n",
    "beam_search",
    "rebase",
    "particle_filter",
    "smc",
)
NUM_BINS = 4
NAMES = ("hardest", "hard", "easy", "easiest")
BUDGETS = (4, 16)
POOL_SEEDS = 3
"""Samples of the first seed are those of the methods; the others tell difficulty."""

FULL = [
    published_experiment("llama-1b", methods=METHODS),
    published_experiment(
        "llama-1b-pool", methods=("self_consistency",), budgets=(16,), seeds=POOL_SEEDS
    ),
]
SMALL = [
    experiment
    for task in EMBEDDED_TASKS
    for experiment in (
        embedded_experiment(task, task, methods=METHODS, budgets=BUDGETS),
        embedded_experiment(
            f"{task}-pool",
            task,
            methods=("self_consistency",),
            budgets=(16,),
            seeds=POOL_SEEDS,
        ),
    )
]


def summarise(curves: Mapping[str, Curves]) -> str:
    """Accuracy by difficulty, method and budget, for the problems of all tasks."""
    rates = np.concatenate([_pass_rates(curves[f"{t}-pool"]) for t in EMBEDDED_TASKS])
    bins = difficulty_bins(rates, NUM_BINS)
    parts = [
        "Difficulty: the policy's pass rate, from samples that no method sees.",
    ]
    for budget in BUDGETS:
        labels = [get_method(method).label for method in METHODS]
        lines = [["problems", "number", "pass rate %", *labels]]
        for place in range(NUM_BINS):
            is_here = bins == place
            if not is_here.any():
                continue
            low, high = 100 * rates[is_here].min(), 100 * rates[is_here].max()
            cells = [
                percent(
                    _part([curves[t][method][budget] for t in EMBEDDED_TASKS], is_here)
                )
                for method in METHODS
            ]
            span = f"{low:.0f} to {high:.0f}"
            lines.append([NAMES[place], str(is_here.sum()), span, *cells])
        parts += [f"N = {budget}:", markdown(lines)]
    return "\n\n".join(parts)


def _pass_rates(curves: Curves) -> np.ndarray:
    """The share of right samples of each problem, without those of the first seed."""
    ((size, point),) = curves["self_consistency"].items()
    return point.num_right[:, 1:].mean(axis=1) / size


def _part(points: list[Point], is_here: np.ndarray) -> Point:
    """Some problems of several tasks, as one point."""
    expected = np.concatenate([point.expected for point in points])[is_here]
    correct = np.concatenate([point.correct for point in points])[is_here]
    mean, error = accuracy(expected)
    return points[0]._replace(
        expected=expected, correct=correct, accuracy=mean, error=error
    )
