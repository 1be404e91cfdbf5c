"""Write the report of an experiment: tables, plots by unit of cost, and statistics."""

import json
from collections.abc import Sequence
from pathlib import Path

from tsi.experiments.files.places import Place, join_place, local_folder
from tsi.experiments.plans.plan import ExperimentPlan, batches
from tsi.experiments.reports.comparisons import (
    challenger_pairs,
    compare,
    compare_with_best,
    largest_common_budget,
    missing_rates_reason,
    scaling_rates,
)
from tsi.experiments.reports.confidence import calibrations, pass_at_budgets
from tsi.experiments.reports.curves import UNITS, Curves, Rows, curves_of
from tsi.experiments.reports.paper_curves import (
    PublishedCurve,
    published_curves,
    published_model,
)
from tsi.experiments.reports.plots import has_costs, save_accuracy_plots
from tsi.experiments.reports.reliability_plot import save_reliability_plot
from tsi.experiments.reports.report import (
    BEST_TEXT,
    accuracy_table,
    accuracy_text,
    calibration_table,
    cost_table,
    paired_table,
    paired_text,
    pass_table,
    problem_notes,
    rate_table,
    row_notes,
)
from tsi.experiments.reports.statistics_file import (
    calibrations_as_json,
    comparisons_as_json,
    pass_as_json,
    rates_as_json,
)
from tsi.experiments.rows.results import check_complete
from tsi.experiments.worlds.world import World
from tsi.models.files import write_text

FILES = (
    *(f"accuracy_{unit}.{suffix}" for unit in UNITS for suffix in ("png", "pdf")),
    "reliability.png",
    "reliability.pdf",
    "scaling_rate.json",
    "statistics.json",
    "table.md",
)
"""The files of a report, of a run whose seconds are known, with N above 1."""

RATE_MEANING = """\
Scaling rate: rollouts that the method under "against" needs, divided by those that
the first method needs, for equal accuracy. Geometric mean over the common accuracy
range, and value at its top, with paired 95 % bootstrap intervals. First at running
maxima over budgets, whose range ends at the best accuracy that both reach; then at raw
accuracies, whose range ends at what both have at their largest budget. "–": the curves
share no range of accuracies, or too few bootstrap replicates do."""

PASS_MEANING = """\
pass@k: probability in percent that one or more of k independent samples is right,
unbiased (arXiv 2107.03374) ± standard error, clustered by problem. It bounds what any
selection from them can reach."""

CALIBRATION_MEANING = """\
Calibration at N = {budget} of the probability given to the selected answer: its share
of the weight, for self-consistency of the votes. ECE: expected calibration error in 10
bins of equal width, with a 95 % bootstrap interval over problems. "if calibrated": the
ECE that noise alone would give. RMS: signed root of the debiased mean squared error of
the bins. Brier and log score are means over problems (log: probabilities kept within
1 / 2N of 0 and 1). "log p(right)": mean log of the posterior probability of right
answers, kept at 1 / 2N or above. "best 25 %": accuracy in percent of the most confident
quarter; area: its mean over all fractions."""


def write_report(plan: ExperimentPlan, world: World, rows: Rows, folder: Place) -> str:
    """Write the report of a finished plan and return its text.

    Args:
        plan: methods, budgets and seeds; other rows are ignored.
        world: a task with its models.
        rows: at least those of the plan.
        folder: for the report's files.

    Raises:
        ResultsError: rows of the plan are missing, or the files cannot be written.
    """
    cells = [cell for batch in batches(plan, world) for cell in batch.cells]
    check_complete(join_place(folder, "rows.jsonl"), dict(rows), cells)
    chosen_rows = {cell: rows[cell] for cell in cells}
    title = run_title(
        str(world.settings.get("task", "task")), len(world.problems), plan.num_seeds
    )
    with local_folder(folder) as local:
        background_curves = find_published_curves(chosen_rows)
        text, names = write_files(chosen_rows, title, local, background_curves)
    return f"{text}\n\nWritten: {folder}/rows.jsonl, {', '.join(names)}"


def run_title(task: str, num_problems: int, num_seeds: int) -> str:
    """The title of a run's tables and figures."""
    problems = f"{num_problems} problem{'s' * (num_problems > 1)}"
    return f"{task}: {problems}, {num_seeds} seed{'s' * (num_seeds > 1)}"


def find_published_curves(rows: Rows, model: str | None = None) -> list[PublishedCurve]:
    """The published curves of the policy and task of rows, if there are any.

    Args:
        rows: with their settings.
        model: a policy of the figure, for rows of other models or tasks.

    Raises:
        UnknownNameError: the figure has no such policy.
    """
    models = {published_model(row.get("settings") or {}) for row in rows.values()}
    if model is None and len(models) == 1:
        (model,) = models
    return [] if model is None else published_curves(model)


def write_files(
    rows: Rows, title: str, folder: Path, published: Sequence[PublishedCurve] = ()
) -> tuple[str, list[str]]:
    """Write tables, plots and statistics of rows.

    Args:
        rows: complete for all their methods.
        title: see `run_title`.
        folder: for the files.
        published: curves behind those of the rows.

    Returns:
        The text to print, and the names of the files.

    Raises:
        ResultsError: rows are missing.
    """
    curves = curves_of(rows)
    names = []
    for unit in UNITS:
        if has_costs(curves, unit):
            pair = [f"accuracy_{unit}.png", f"accuracy_{unit}.pdf"]
            paths = [folder / name for name in pair]
            save_accuracy_plots(curves, unit, title, paths, published=published)
            names += pair
    budget = largest_common_budget(curves)
    comparisons = compare_with_best(curves, budget) if budget else []
    paired = paired_section(curves, budget)
    rates = rates_section(curves, folder / "scaling_rate.json")
    pass_points = pass_at_budgets(curves)
    calibration_points = calibrations(curves, budget) if budget else {}
    if calibration_points:
        pair = ["reliability.png", "reliability.pdf"]
        heading = f"{title}, N = {budget}"
        save_reliability_plot(
            calibration_points, heading, [folder / name for name in pair]
        )
        names += pair
    statistics = {
        "compared_with_best": comparisons_as_json(comparisons),
        "pairs": comparisons_as_json(
            compare(curves, challenger_pairs(curves), all_budgets(curves))
        ),
        "pass_at_k": pass_as_json(pass_points),
        "calibration": calibrations_as_json(calibration_points),
    }
    write_text(folder / "statistics.json", json.dumps(statistics, indent=1) + "\n")
    head = f"# {title}\n\n{accuracy_text(curves)}\n\n{accuracy_table(curves)}"
    note_texts = [*problem_notes(curves), *row_notes(rows)]
    notes = [*[f"Note: {note}" for note in note_texts], *thinking_notes(rows)]
    sections = [head, cost_table(curves), *paired, *rates]
    if len(pass_points) > 1:
        sections += [PASS_MEANING, pass_table(pass_points)]
    if calibration_points:
        meaning = CALIBRATION_MEANING.format(budget=budget)
        sections += [meaning, calibration_table(calibration_points)]
    write_text(folder / "table.md", "\n\n".join([*sections, *notes]) + "\n")
    costs = cost_table(curves, [max(all_budgets(curves))])
    text = "\n\n".join([head, costs, *paired, *rates, *notes])
    return text, [*names, "scaling_rate.json", "statistics.json", "table.md"]


def all_budgets(curves: Curves) -> list[int]:
    """Every budget of every method."""
    return sorted({budget for curve in curves.values() for budget in curve})


def paired_section(curves: Curves, budget: int | None) -> list[str]:
    """The table of paired differences with its text, at the largest common budget.

    Without SMC, REBASE and DVTS the table has the challengers and baselines, and
    without those the first method against all others.
    """
    if budget is None:
        return []
    comparisons = compare_with_best(curves, budget)
    if comparisons:
        return [f"{paired_text(comparisons)}\n{BEST_TEXT}", paired_table(comparisons)]
    first, *others = (method for method, curve in curves.items() if budget in curve)
    pairs = challenger_pairs(curves) or [(other, first) for other in others]
    comparisons = compare(curves, pairs, [budget])
    return [paired_text(comparisons), paired_table(comparisons)] if comparisons else []


def rates_section(curves: Curves, path: Path) -> list[str]:
    """The table of scaling rates with its text; all rates are written to a file."""
    units = ("rollouts", "flops")
    best = {unit: scaling_rates(curves, unit) for unit in units}
    raw = scaling_rates(curves, envelope="raw")
    values = {unit: rates_as_json(best[unit]) for unit in units}
    values["rollouts_raw"] = rates_as_json(raw)
    write_text(path, json.dumps(values, indent=1) + "\n")
    if not best["rollouts"]:
        return [f"No scaling rate: {missing_rates_reason(curves)}"]
    return [RATE_MEANING, rate_table(best["rollouts"], raw)]


def thinking_notes(rows: Rows) -> list[str]:
    """Advice if a limit cut models that were thinking."""
    # Rows of earlier versions lack this field.
    is_thinking = [bool(row.get("num_thinking")) for row in rows.values()]
    if not any(is_thinking):
        return []
    return [
        f"In {sum(is_thinking)} of {len(rows)} runs the model was still thinking when "
        "a limit was reached: raise the limit, or, if its chat template has such a "
        "switch, pass --template-switch enable_thinking=false."
    ]
