"""What a page shows of a run, as JSON values: curves, tables and single problems."""

from collections.abc import Mapping, Sequence
from typing import Any

from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import get_method
from tsi.experiments.reports.comparisons import (
    challenger_pairs,
    compare,
    compare_with_best,
    largest_common_budget,
    missing_rates_reason,
    scaling_rates,
)
from tsi.experiments.reports.confidence import calibrations, pass_at_budgets
from tsi.experiments.reports.curves import UNITS, Curves, Point, Rows, curves_of
from tsi.experiments.reports.paper_curves import PublishedCurve
from tsi.experiments.reports.plots import bar, style_of, styles_of
from tsi.experiments.reports.report import MIN_SHARED, percent, problem_notes, row_notes
from tsi.experiments.reports.statistics_file import (
    calibrations_as_json,
    comparisons_as_json,
    pass_as_json,
)
from tsi.experiments.reports.write_report import all_budgets, run_title
from tsi.experiments.rows.rows import round_finite
from tsi.experiments.statistics.bootstrap import RateEstimate
from tsi.problem_ids import id_order

DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot", "none": "solid"}
SYMBOLS = {
    "*": "star",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "s": "square",
    "D": "diamond",
    "P": "cross",
    "o": "circle",
    "^": "triangle-up",
    "X": "x",
    "d": "diamond-tall",
    "h": "hexagon",
    "p": "pentagon",
    "8": "octagon",
}
"""Plotly's names of matplotlib's lines and markers."""

RATE_UNITS = ("rollouts", "all_tokens", "flops")
NUM_REPLICATES = 500


def page_data(
    name: str,
    rows: Rows,
    trees: Sequence[Mapping] = (),
    published: Sequence[PublishedCurve] = (),
) -> dict[str, Any]:
    """Everything that the page shows of one run.

    Args:
        name: of the run, to tell several apart.
        rows: complete for all their methods, with their settings.
        trees: of kept runs; see `tree_data.tree_of`.
        published: curves that are drawn behind those of the run.

    Raises:
        ResultsError: rows are missing.
    """
    curves = curves_of(rows)
    budgets = all_budgets(curves)
    seeds = {cell.seed for cell in rows}
    problems = sorted({cell.problem for cell in rows}, key=id_order)
    settings = _common_settings(rows)
    largest = largest_common_budget(curves)
    task = str(settings.get("task", "task"))
    return {
        "name": name,
        "title": run_title(task, len(problems), len(seeds)),
        "settings": {key: str(value) for key, value in settings.items()},
        "units": {unit: label for unit, (label, _) in UNITS.items()},
        "bases": {unit: base for unit, (_, base) in UNITS.items()},
        "methods": [
            {"name": name, "label": get_method(name).label, **_in_html(style)}
            for name, style in styles_of(curves).items()
        ],
        "points": [
            _point(method, budget, point)
            for method, curve in curves.items()
            for budget, point in curve.items()
        ],
        "published": [
            {
                **_in_html(style_of(curve.method)),
                "label": curve.label,
                "budgets": curve.budgets,
                "accuracies": curve.accuracies,
            }
            for curve in published
        ],
        "paired": {
            budget: {
                "best": comparisons_as_json(compare_with_best(curves, budget)),
                "pairs": comparisons_as_json(
                    compare(curves, challenger_pairs(curves), [budget])
                ),
            }
            for budget in budgets
        },
        "rates": _rates(curves),
        "no_rates": missing_rates_reason(curves),
        "pass": pass_as_json(pass_at_budgets(curves)),
        "calibration_budget": largest,
        "calibration": calibrations_as_json(
            calibrations(curves, largest) if largest else {}
        ),
        "notes": [*problem_notes(curves), *row_notes(rows)],
        "problems": _problems(rows, problems),
        "answers": _answers(rows, curves, problems, sorted(seeds)),
        "trees": list(trees),
        "pools": [
            {
                "method": method,
                "points": [
                    {
                        "n": n,
                        "accuracy": point.accuracy,
                        "error": round_finite(point.error),
                    }
                    for n, point in curve.items()
                ],
            }
            for method, curve in curves.items()
            if get_method(method).never_resamples
        ],
    }


def _common_settings(rows: Rows) -> dict[str, Any]:
    """The settings that all rows share."""
    common: dict[str, Any] | None = None
    for row in rows.values():
        settings = row.get("settings") or {}
        if common is None:
            common = dict(settings)
        elif common != settings:
            common = {
                key: value
                for key, value in common.items()
                if key in settings and settings[key] == value
            }
    return common or {}


def _in_html(style: tuple[str, str, str]) -> dict[str, str]:
    colour, marker, line = style
    return {"colour": colour, "dash": DASHES[line], "symbol": SYMBOLS[marker]}


def _point(method: str, budget: int, point: Point) -> dict[str, Any]:
    below, above = bar(point)
    return {
        "method": method,
        "budget": budget,
        "accuracy": point.accuracy,
        "low": round_finite(point.accuracy - below),
        "high": round_finite(point.accuracy + above),
        "text": percent(point),
        "costs": {unit: round_finite(getattr(point, unit)) for unit in UNITS},
        "reward_tokens": round_finite(point.reward_tokens),
    }


def _rates(curves: Curves) -> dict[str, list[dict[str, Any]]]:
    """Scaling rates by unit of cost, at running maxima and at raw accuracies."""
    rates = {}
    for unit in RATE_UNITS:
        best = scaling_rates(curves, unit, num_replicates=NUM_REPLICATES)
        raw = scaling_rates(curves, unit, "raw", num_replicates=NUM_REPLICATES)
        rates[unit] = [
            {
                "method": a,
                "against": b,
                "best": _rate(estimate),
                "raw": _rate(raw[a, b]),
            }
            for (a, b), estimate in best.items()
        ]
    return rates


def _rate(estimate: RateEstimate) -> dict[str, Any]:
    has_interval = estimate.fraction_shared >= MIN_SHARED
    return {
        "mean": round_finite(estimate.rate.mean),
        "interval": list(map(round_finite, estimate.mean)) if has_interval else None,
        "top": round_finite(estimate.rate.top),
        "range": list(map(round_finite, estimate.rate.accuracies[[0, -1]])),
    }


def _problems(rows: Rows, problems: Sequence[int | str]) -> list[dict[str, Any]]:
    """Id, prompt and right answer of each problem."""
    first = {cell.problem: row for cell, row in rows.items()}
    return [
        {
            "id": problem,
            "prompt": str(first[problem].get("prompt", "")),
            "answer": str(first[problem].get("answer", "")),
        }
        for problem in problems
    ]


def _answers(
    rows: Rows, curves: Curves, problems: Sequence[int | str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """One record for each method, budget and seed, with a list over problems.

    A problem that the method does not have is null in every list.
    """
    records = []
    for method, curve in curves.items():
        for budget in curve:
            for seed in seeds:
                cells = [Cell(method, budget, seed, problem) for problem in problems]
                if not any(cell in rows for cell in cells):
                    continue
                found: list[Mapping] = [rows.get(cell, {}) for cell in cells]
                records.append(
                    {
                        "method": method,
                        "budget": budget,
                        "seed": seed,
                        "selected": [row.get("selected") for row in found],
                        "correct": [row.get("correct") for row in found],
                        "probability": [row.get("probability") for row in found],
                        "num_right": [row.get("num_right") for row in found],
                        "num_answered": [row.get("num_answered") for row in found],
                    }
                )
    return records
