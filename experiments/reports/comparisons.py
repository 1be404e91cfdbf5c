"""Comparisons of methods on the same problems: differences and scaling rates.

Which pairs are compared is fixed before the results are seen: each method against the
best of `REFERENCES`, and the samplers among `CHALLENGERS` against `BASELINES`. (Which
of the references is best is read from the same problems, which favours it.) Methods
with different problems are compared on those that both have, by their ids.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from tsi.experiments.plans.methods import base_of, get_method
from tsi.experiments.reports.curves import Curves, Point, on_common_problems
from tsi.experiments.statistics.bootstrap import (
    Curve,
    RateEstimate,
    bootstrap_scaling_rate,
)
from tsi.experiments.statistics.holm import holm
from tsi.experiments.statistics.paired import PairedDifference, paired_difference
from tsi.experiments.statistics.power_analysis import problems_needed
from tsi.experiments.statistics.scaling_rate import Envelope

CHALLENGERS = ("particle_filter", "smc", "entropic_particle_filter")
BASELINES = (
    "self_consistency",
    "best_of_n",
    "weighted_best_of_n",
    "beam_search",
    "dvts",
    "rebase",
)
REFERENCES = ("smc", "rebase", "dvts")

SOUGHT = 0.05
"""The difference for which the number of problems is reported."""


class Comparison(NamedTuple):
    """Two methods at one budget.

    Args:
        method, against: names of the methods.
        budget: N of both.
        result: accuracy of the first minus that of the second.
        adjusted: Holm's p-value for all comparisons of the list.
        needed: problems at which a difference of `SOUGHT` is found with probability 0.8
            at level 0.05; None if no pair is discordant.
    """

    method: str
    against: str
    budget: int
    result: PairedDifference
    adjusted: float
    needed: int | None


def compare(
    curves: Curves, pairs: Sequence[tuple[str, str]], budgets: Sequence[int]
) -> list[Comparison]:
    """Compare pairs of methods at all budgets that both have, on common problems.

    Pairs without a common problem, or of several seeds each without a common seed, are
    left out.

    Args:
        curves: from `curves_of`.
        pairs: names of methods.
        budgets: to compare at.
    """
    differences = [
        (a, b, n, _difference(*common), len(common[0].correct))
        for n in budgets
        for a, b in pairs
        if n in curves[a] and n in curves[b]
        if (common := on_common_problems(curves[a][n], curves[b][n])) is not None
    ]
    adjusted = holm([result.p_value for _, _, _, result, _ in differences])
    return [
        Comparison(a, b, n, result, float(p), _needed(result, num_problems))
        for (a, b, n, result, num_problems), p in zip(
            differences, adjusted, strict=True
        )
    ]


def compare_with_best(curves: Curves, budget: int) -> list[Comparison]:
    """Compare each method with the best of `REFERENCES` at one budget.

    The best itself is compared with the second best of them. The best for a method is
    among those with which `compare` can compare it; a method without such a reference
    is left out.
    """
    methods_here = [method for method, curve in curves.items() if budget in curve]
    references = sorted(
        (method for method in methods_here if base_of(method) in REFERENCES),
        key=lambda method: (
            -curves[method][budget].accuracy,
            REFERENCES.index(base_of(method)),
        ),
    )
    pairs = []
    for method in methods_here:
        point = curves[method][budget]
        for reference in references:
            other = curves[reference][budget]
            if reference != method and on_common_problems(point, other) is not None:
                pairs.append((method, reference))
                break
    return compare(curves, pairs, [budget])


def challenger_pairs(curves: Curves) -> list[tuple[str, str]]:
    """The challengers and baselines of one temperature among the methods, in pairs."""
    suffixes = dict.fromkeys(name.removeprefix(base_of(name)) for name in curves)
    return [
        (a + suffix, b + suffix)
        for suffix, a, b in product(suffixes, CHALLENGERS, BASELINES)
        if a + suffix in curves and b + suffix in curves
    ]


def largest_common_budget(curves: Curves) -> int | None:
    """The largest budget that two methods have; None if there is none."""
    budgets = [budget for curve in curves.values() for budget in curve]
    shared = [budget for budget in budgets if budgets.count(budget) > 1]
    return max(shared, default=None)


def _difference(a: Point, b: Point) -> PairedDifference:
    return paired_difference(
        a.correct, b.correct, expected_a=a.expected, expected_b=b.expected
    )


def _needed(result: PairedDifference, num_problems: int) -> int | None:
    if result.mean_square == 0:
        return None
    num_seeds = result.num_pairs // num_problems
    return problems_needed(result.mean_square, SOUGHT, num_seeds=num_seeds)


def scaling_rates(
    curves: Curves,
    unit: str = "rollouts",
    envelope: Envelope = "running_maximum",
    num_replicates: int = 1000,
) -> dict[tuple[str, str], RateEstimate]:
    """(A, B) -> the factor by which B needs more than A for equal accuracy.

    Both are taken on the problems and seeds that both have.

    Args:
        curves: from `curves_of`.
        unit: one of `curves.UNITS`; means over problems are the budgets.
        envelope: "running_maximum" or "raw"; see `statistics.scaling_rate`.
        num_replicates: number of bootstrap replicates.
    """
    rates = {}
    for a, b in challenger_pairs(curves):
        common = _common_curves(curves[a], curves[b])
        of_a, of_b = (_by_cost(curve, unit) for curve in common)
        if _is_increasing(of_a) and _is_increasing(of_b):
            rates[a, b] = bootstrap_scaling_rate(
                of_a, of_b, envelope=envelope, num_replicates=num_replicates
            )
    return rates


def missing_rates_reason(curves: Curves) -> str:
    """Why there is no scaling rate in rollouts, as a sentence."""
    if not challenger_pairs(curves):
        return (
            f"it compares {_labels(CHALLENGERS)} with {_labels(BASELINES)}, and this "
            "run lacks the former or the latter."
        )
    if not any(
        any(_common_curves(curves[a], curves[b])) for a, b in challenger_pairs(curves)
    ):
        return "the methods that would be compared have no problem and seed in common."
    budgets = {budget for curve in curves.values() for budget in curve}
    return (
        "it needs two budgets of each method, and here methods that would be compared "
        f"have one (N = {', '.join(map(str, sorted(budgets)))})."
    )


def _labels(methods: Sequence[str]) -> str:
    *first, last = (get_method(method).label for method in methods)
    return f"{', '.join(first)} or {last}"


def _common_curves(
    a: dict[int, Point], b: dict[int, Point]
) -> tuple[dict[int, Point], dict[int, Point]]:
    """Two curves on the problems and seeds that both have; empty without any."""
    # A method has the same problems and seeds at all of its budgets.
    first_a, first_b = next(iter(a.values())), next(iter(b.values()))
    of_a, of_b = {}, {}
    for budget, point in a.items():
        if (common := on_common_problems(point, first_b, same_seeds=True)) is not None:
            of_a[budget] = common[0]
    for budget, point in b.items():
        if (common := on_common_problems(first_a, point, same_seeds=True)) is not None:
            of_b[budget] = common[1]
    return of_a, of_b


def _by_cost(curve: dict[int, Point], unit: str) -> Curve:
    costs = {getattr(point, unit): point.expected for point in curve.values()}
    return {cost: expected for cost, expected in costs.items() if np.isfinite(cost)}


def _is_increasing(curve: Curve) -> bool:
    costs = list(curve)
    return len(costs) > 1 and costs[0] > 0 and costs == sorted(costs)
