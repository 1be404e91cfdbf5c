"""From curves to tables: accuracies with errors, costs, comparisons and confidence.

Everything here depends only on the rows, so that anyone can recompute a table from the
JSONL file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tsi.experiments.plans.methods import get_method
from tsi.experiments.reports.comparisons import SOUGHT, Comparison
from tsi.experiments.reports.curves import Curves, Point, Rows
from tsi.experiments.statistics.accuracy import accuracy_interval, has_few
from tsi.experiments.statistics.bootstrap import RateEstimate
from tsi.experiments.statistics.calibration import Calibration
from tsi.experiments.statistics.wilson_interval import Interval
from tsi.results.notes import MIN_SHARE, MIN_SPREAD

MIN_SHARED = 0.9
"""If fewer bootstrap replicates have a common range, a rate has no interval."""


def row_notes(rows: Rows) -> list[str]:
    """Reasons to distrust the table, without repetitions; see `tsi.results.notes`.

    Args:
        rows: of any methods; rows of earlier versions and of other programs may lack
            any field.
    """
    all_truncated = [
        row["num_answered"] == 0 and row["num_truncated"] > 0
        for row in rows.values()
        if "num_answered" in row and "num_truncated" in row
    ]
    unanswered = [
        row["unanswered"] for row in rows.values() if row.get("unanswered") is not None
    ]
    equal_rewards = [
        row["reward_spread"] <= MIN_SPREAD
        for cell, row in rows.items()
        if get_method(cell.method).reads_reward and row.get("reward_spread") is not None
    ]
    num_ungraded = [row.get("num_ungraded") or 0 for row in rows.values()]
    notes = []
    if any(num_ungraded):
        num_answered = sum(row.get("num_answered") or 0 for row in rows.values())
        notes.append(
            f"{sum(num_ungraded):,} of {num_answered:,} answers, in "
            f"{sum(map(bool, num_ungraded)):,} of {len(rows):,} runs, could not be "
            "graded and count as wrong; `tsi regrade` grades them again."
        )
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
    retokenized = [row.get("retokenized_steps") or 0 for row in rows.values()]
    if any(retokenized):
        notes.append(
            f"At least {sum(retokenized):,} steps, in {sum(map(bool, retokenized)):,} "
            f"of {len(rows):,} runs, are read by the server as other tokens than it "
            "has drawn, since it takes only text; a server that takes token ids "
            "continues exactly."
        )
    return notes


def problem_notes(curves: Curves) -> list[str]:
    """What a table of methods with different problems or seeds compares."""
    points = {method: next(iter(curve.values())) for method, curve in curves.items()}
    notes = []
    # A single seed is compared with each of the other method's.
    if len({frozenset(x.seeds) for x in points.values() if len(x.seeds) > 1}) > 1:
        notes.append(
            "Methods have different seeds. Paired differences of two methods with "
            "several seeds are over those that both have, and pairs of them without a "
            "common seed are left out."
        )
    if len({frozenset(point.problems) for point in points.values()}) < 2:
        return notes
    counts = ", ".join(
        f"{get_method(method).label} {len(point.correct)}"
        for method, point in points.items()
    )
    return [
        f"Methods have different problems ({counts}). Accuracies and costs are over a "
        "method's own problems; paired differences and scaling rates are over those "
        "that both methods have, and pairs without a common problem are left out.",
        *notes,
    ]


def _share(values: Sequence[float] | Sequence[bool]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def accuracy_text(curves: Curves) -> str:
    """What the accuracies of a table mean."""
    points = [point for curve in curves.values() for point in curve.values()]
    text = "Accuracy in percent ± standard error, clustered by problem."
    if any((point.expected != point.correct).any() for point in points):
        text += (
            " Methods that never resample select from all subsets of n of their N "
            "samples, and the accuracy is the mean over these."
        )
    if any(has_few(point.expected) for point in points):
        text += (
            " Brackets are 95 % Wilson intervals, which replace the standard error "
            "where fewer than ten problems are right or wrong."
        )
    return text


def accuracy_table(curves: Curves) -> str:
    """Accuracy and its error in percent, by method (rows) and budget (columns)."""
    budgets = sorted({budget for curve in curves.values() for budget in curve})
    lines = [["method", *[f"N = {budget}" for budget in budgets]]]
    for method, curve in curves.items():
        cells = [percent(curve[b]) if b in curve else "" for b in budgets]
        lines.append([get_method(method).label, *cells])
    return markdown(lines)


def cost_table(curves: Curves, budgets: Iterable[int] | None = None) -> str:
    """A line for each method and budget: accuracy and cost per problem.

    Time is wall-clock time with compilation, and "–" if rows were taken from another
    run.

    Args:
        curves: from `curves_of`.
        budgets: to show; by default all. Greedy decoding is always shown.
    """
    shown_budgets = None if budgets is None else set(budgets)
    head = "method|N|accuracy %|tokens|reward tokens|MFLOP|ms with compilation"
    lines = [head.split("|")]
    for method, curve in curves.items():
        for budget, point in curve.items():
            if shown_budgets is None or budget in shown_budgets or len(curve) == 1:
                lines.append(
                    [
                        get_method(method).label,
                        str(budget),
                        percent(point),
                        number(point.generated_tokens, 0),
                        number(point.reward_tokens, 0),
                        number(point.flops / 1e6, 1),
                        number(1e3 * point.seconds, 1),
                    ]
                )
    return markdown(lines)


def paired_text(comparisons: Sequence[Comparison]) -> str:
    """What the columns of `paired_table` mean, with the number of comparisons."""
    budgets = sorted({comparison.budget for comparison in comparisons})
    count = len(comparisons)
    return (
        f"Paired differences at N = {', '.join(map(str, budgets))}, in points ± "
        'standard error, on the same problems.\n"only first" and "only second" count '
        "runs in which only one of the two is right.\np: exact test that the two are "
        "interchangeable on each problem (with one seed McNemar's);\nStudent's t test "
        "of the mean where accuracies are means over subsets of a pool.\n"
        f"Holm: p adjusted for the {count} comparison{'s' * (count > 1)} of this "
        f"table. Last column: problems at which a\ndifference of {100 * SOUGHT:.0f} "
        "points would be found with probability 0.8 at level 0.05, given these\n"
        "discordant pairs."
    )


BEST_TEXT = """\
Each method is compared with the best of SMC, REBASE and DVTS at this budget, and the
best with the second best. Which one is best was read from the same problems, which
favours it."""


def paired_table(
    comparisons: Sequence[Comparison], labels: Mapping[str, str] | None = None
) -> str:
    """A line for each comparison; see `paired_text`.

    Args:
        comparisons: of methods.
        labels: of methods, if not those of `Method.label`.
    """
    labels = labels or {}
    head = "method|against|difference|95 %|only first|only second|p|Holm"
    lines = [[*head.split("|"), f"problems for {100 * SOUGHT:.0f}"]]
    for method, against, _, result, adjusted, needed in comparisons:
        error = number(100 * result.error, 1)
        lines.append(
            [
                labels.get(method, get_method(method).label),
                labels.get(against, get_method(against).label),
                f"{format_difference(100 * result.difference)} ± {error}",
                f"[{format_difference(100 * result.interval.low)}, "
                f"{format_difference(100 * result.interval.high)}]",
                str(result.only_a),
                str(result.only_b),
                p_text(result.p_value),
                p_text(adjusted),
                "–" if needed is None else str(needed),
            ]
        )
    return markdown(lines)


def rate_table(
    best: Mapping[tuple[str, str], RateEstimate],
    raw: Mapping[tuple[str, str], RateEstimate],
) -> str:
    """A line for each pair: scaling rates at running maxima, and at raw accuracies.

    Args:
        best: at running maxima.
        raw: at raw accuracies, of the same pairs.
    """
    head = "method|against|mean [95 %]|top [95 %]|accuracies %"
    lines = [[*head.split("|"), "raw: mean [95 %]", "raw: accuracies %"]]
    for (a, b), estimate in best.items():
        other = raw[a, b]
        lines.append(
            [
                get_method(a).label,
                get_method(b).label,
                _factor(estimate.rate.mean, estimate.mean, estimate),
                _factor(estimate.rate.top, estimate.top, estimate),
                _range(estimate),
                _factor(other.rate.mean, other.mean, other),
                _range(other),
            ]
        )
    return markdown(lines)


def pass_table(rates: Mapping[int, tuple[float, float]]) -> str:
    """pass@k in percent ± standard error, by k."""
    lines = [["", *[f"k = {k}" for k in rates]]]
    cells = [f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in rates.values()]
    return markdown([*lines, ["pass@k", *cells]])


def calibration_table(calibrations: Mapping[str, Calibration]) -> str:
    """A line for each method: calibration, scores and selective accuracy."""
    head = (
        "method|ECE [95 %]|if calibrated|RMS|Brier|log score|log p(right)"
        "|best 25 %|50 %|75 %|area"
    )
    lines = [head.split("|")]
    for method, values in calibrations.items():
        low, high = values.ece_interval
        lines.append(
            [
                get_method(method).label,
                f"{values.ece:.3f} [{low:.3f}, {high:.3f}]",
                f"{values.ece_if_calibrated:.3f}",
                number(values.rms_error, 3),
                f"{values.brier:.3f}",
                f"{values.log_score:.3f}",
                number(values.right_log_score, 3),
                *[f"{100 * share:.1f}" for share in values.selective],
                f"{100 * values.selective_area:.1f}",
            ]
        )
    return markdown(lines)


def percent(point: Point) -> str:
    """Accuracy ± standard error, or with Wilson's interval."""
    if has_few(point.expected):
        low, high = accuracy_interval(point.expected)
        return f"{100 * point.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * point.accuracy:.1f} ± {100 * point.error:.1f}"


def number(value: float, digits: int) -> str:
    """A number, or a dash if it is not known."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def format_difference(value: float) -> str:
    """A difference with its sign; zero has none."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def p_text(p: float) -> str:
    """A p-value with three digits after the point."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _range(estimate: RateEstimate) -> str:
    ends = estimate.rate.accuracies[[0, -1]] * 100
    return f"{ends[0]:.1f} to {ends[1]:.1f}" if np.isfinite(ends).all() else "–"


def _factor(value: Any, interval: Interval, estimate: RateEstimate) -> str:
    if not math.isfinite(float(value)):
        return "–"
    if estimate.fraction_shared < MIN_SHARED or not all(map(math.isfinite, interval)):
        return f"{float(value):.2f} [–]"
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
