"""From rows to tables: accuracies with errors, costs and scaling rates.

Everything here is a function of the rows alone, so that anyone can recompute a table
from the JSONL file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from tsi.errors import ResultsError
from tsi.experiments.scaling.bootstrap import (
    Curve,
    RateEstimate,
    accuracy,
    bootstrap_scaling_rate,
)
from tsi.experiments.scaling.methods import METHODS, get_method
from tsi.experiments.scaling.results import Cell
from tsi.experiments.scaling.rows import round_finite
from tsi.problem_ids import id_order
from tsi.results.notes import MIN_SHARE, MIN_SPREAD

Rows = Mapping[Cell, Mapping[str, Any]]

CHALLENGERS = ("particle_filter", "smc", "entropic_particle_filter")
BASELINES = (
    "self_consistency",
    "best_of_n",
    "weighted_best_of_n",
    "beam_search",
    "dvts",
    "rebase",
)


class Point(NamedTuple):
    """One method at one budget.

    Args:
        correct: for each problem and seed.
        accuracy: mean over problems and seeds.
        error: its standard error, clustered by problem.
        generated_tokens: mean per problem, as all costs below.
        reward_tokens: read by the reward model.
        flops: of both models.
        seconds: time of the batch, with compilation, divided by its problems; NaN if
            rows were taken from a larger run.
    """

    correct: Bool[np.ndarray, "P S"]
    accuracy: float
    error: float
    generated_tokens: float
    reward_tokens: float
    flops: float
    seconds: float


Curves = dict[str, dict[int, Point]]


def curves_of(rows: Rows) -> Curves:
    """Method -> budget -> point, in the order of tables.

    Raises:
        ResultsError: a method has problems or seeds at one budget that it lacks at
            another.
    """
    curves: Curves = {}
    for method in METHODS:
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
                [[rows[cell] for cell in line] for line in grid]
            )
    return curves


def _point(grid: list[list[Mapping[str, Any]]]) -> Point:
    def mean(field: str) -> float:
        values = [[row[field] for row in line] for line in grid]
        # null in the file is None here, and becomes NaN.
        return float(np.mean(np.array(values, np.float64)))

    correct = np.array([[bool(row["correct"]) for row in line] for line in grid])
    costs = ("generated_tokens", "reward_tokens", "flops", "seconds")
    return Point(correct, *accuracy(correct), *map(mean, costs))


def row_notes(rows: Rows) -> list[str]:
    """Reasons to distrust the table, each once; see `tsi.results.notes`.

    Args:
        rows: of any methods; older rows may lack some fields.
    """
    all_truncated = [
        row["num_answered"] == 0 and row["num_truncated"] > 0 for row in rows.values()
    ]
    unanswered = [
        row["unanswered"] for row in rows.values() if row.get("unanswered") is not None
    ]
    equal_rewards = [
        row["reward_spread"] <= MIN_SPREAD
        for cell, row in rows.items()
        if get_method(cell.method).reads_reward and row.get("reward_spread") is not None
    ]
    notes = []
    if _share(all_truncated) >= MIN_SHARE:
        notes.append(
            f"In {sum(all_truncated)} of {len(all_truncated)} runs the token or step "
            "limit left no particle with an answer; raise the limit, or have the "
            "policy write less."
        )
    if _share(unanswered) >= MIN_SHARE:
        notes.append(
            f"On average {100 * _share(unanswered):.0f} % of the weight is on "
            "particles without an answer, which answer posteriors leave out."
        )
    if _share(equal_rewards) >= MIN_SHARE:
        notes.append(
            f"In {sum(equal_rewards)} of {len(equal_rewards)} runs all rewards lie "
            f"within {MIN_SPREAD} of each other: there the reward does not "
            "discriminate between particles."
        )
    return notes


def _share(values: Sequence[float] | Sequence[bool]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def scaling_rates(
    curves: Curves, unit: str = "rollouts", num_replicates: int = 1000
) -> dict[tuple[str, str], RateEstimate]:
    """(A, B) -> the factor by which B needs more than A for equal accuracy.

    Args:
        curves: from `curves_of`.
        unit: "rollouts", or "flops", "generated_tokens" or "reward_tokens", of which
            the means over problems are the budgets.
        num_replicates: number of bootstrap replicates.
    """
    rates = {}
    for a, b in product(CHALLENGERS, BASELINES):
        if a not in curves or b not in curves:
            continue
        of_a, of_b = (_by_cost(curves[name], unit) for name in (a, b))
        if _is_increasing(of_a) and _is_increasing(of_b):
            rates[a, b] = bootstrap_scaling_rate(
                of_a, of_b, num_replicates=num_replicates
            )
    return rates


def _by_cost(curve: dict[int, Point], unit: str) -> Curve:
    if unit == "rollouts":
        return {budget: point.correct for budget, point in curve.items()}
    return {getattr(point, unit): point.correct for point in curve.values()}


def _is_increasing(curve: Curve) -> bool:
    costs = list(curve)
    return len(costs) > 1 and costs[0] > 0 and costs == sorted(costs)


def rates_as_json(rates: Mapping[tuple[str, str], RateEstimate]) -> list[dict]:
    """The estimates as JSON values; NaN is null."""
    return [
        {
            "method": a,
            "against": b,
            "mean": round_finite(estimate.rate.mean),
            "mean_interval": list(map(round_finite, estimate.mean)),
            "top": round_finite(estimate.rate.top),
            "top_interval": list(map(round_finite, estimate.top)),
            "curve": [
                {
                    "accuracy": round_finite(at),
                    "rate": round_finite(rate),
                    "interval": list(map(round_finite, interval)),
                }
                for at, rate, interval in zip(
                    estimate.rate.accuracies,
                    estimate.rate.rates,
                    estimate.curve,
                    strict=True,
                )
            ],
            "fraction_shared": estimate.fraction_shared,
        }
        for (a, b), estimate in rates.items()
    ]


def accuracy_table(curves: Curves) -> str:
    """Accuracy ± standard error in percent, by method (rows) and budget (columns)."""
    budgets = sorted({budget for curve in curves.values() for budget in curve})
    lines = [["method", *[f"N = {budget}" for budget in budgets]]]
    for method, curve in curves.items():
        cells = [_percent(curve[b]) if b in curve else "" for b in budgets]
        lines.append([get_method(method).label, *cells])
    return markdown(lines)


def cost_table(curves: Curves, budgets: Iterable[int] | None = None) -> str:
    """A line for each method and budget: accuracy and cost per problem.

    Time is wall-clock time with compilation, and "-" if rows were taken from another
    run.

    Args:
        curves: from `curves_of`.
        budgets: to show; by default all. Greedy decoding is always shown.
    """
    shown_budgets = None if budgets is None else set(budgets)
    head = "method|N|accuracy %|tokens|reward tokens|MFLOP|ms"
    lines = [head.split("|")]
    for method, curve in curves.items():
        for budget, point in curve.items():
            if shown_budgets is None or budget in shown_budgets or len(curve) == 1:
                lines.append(
                    [
                        get_method(method).label,
                        str(budget),
                        _percent(point),
                        f"{point.generated_tokens:.0f}",
                        f"{point.reward_tokens:.0f}",
                        f"{point.flops / 1e6:.1f}",
                        _milliseconds(point.seconds),
                    ]
                )
    return markdown(lines)


def rate_table(rates: Mapping[tuple[str, str], RateEstimate]) -> str:
    """A line for each pair: mean and top of the scaling rate with their intervals."""
    head = "method|against|mean [95 %]|top [95 %]|accuracies %"
    lines = [head.split("|")]
    for (a, b), estimate in rates.items():
        rate = estimate.rate
        ends = rate.accuracies[[0, -1]] * 100
        has_common_range = np.isfinite(ends).all()
        lines.append(
            [
                get_method(a).label,
                get_method(b).label,
                _factor(rate.mean, estimate.mean),
                _factor(rate.top, estimate.top),
                f"{ends[0]:.1f} to {ends[1]:.1f}"
                if has_common_range
                else "none shared",
            ]
        )
    return markdown(lines)


def _percent(point: Point) -> str:
    return f"{100 * point.accuracy:.1f} ± {100 * point.error:.1f}"


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.1f}"


def _factor(value: Any, interval: tuple[float, float]) -> str:
    if not math.isfinite(float(value)):
        return "-"
    if not all(map(math.isfinite, interval)):
        return f"{float(value):.2f}"
    return f"{float(value):.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table with aligned columns; the first line is the header."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
