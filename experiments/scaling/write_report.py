"""Write the report of an experiment: table.md, two plots and scaling_rate.json."""

import json
from pathlib import Path

from tsi.experiments.places import Place, join_place, local_folder
from tsi.experiments.scaling.plan import Plan, batches
from tsi.experiments.scaling.plots import save_accuracy_plot
from tsi.experiments.scaling.report import (
    Rows,
    accuracy_table,
    cost_table,
    curves_of,
    rate_table,
    rates_as_json,
    row_notes,
    scaling_rates,
)
from tsi.experiments.scaling.results import check_complete
from tsi.experiments.worlds.world import World
from tsi.models.files import write_text

RATE_MEANING = """\
Scaling rate: rollouts that the method under "against" needs, divided by those that
the first method needs, for equal accuracy (running maxima over budgets). Geometric
mean over the common accuracy range, and value at its top, with paired bootstrap
intervals."""


def write_report(plan: Plan, world: World, rows: Rows, folder: Place) -> str:
    """Write the report of a finished plan and return its text.

    Args:
        plan: methods, budgets and seeds; other rows are ignored.
        world: a task with its models.
        rows: at least those of the plan.
        folder: for the report's files.

    Raises:
        ResultsError: rows of the plan are missing, or the files cannot be written.
    """
    with local_folder(folder) as local:
        text = _write(plan, world, rows, local, join_place(folder, "rows.jsonl"))
    return f"{text}\n\nWritten: {folder}/rows.jsonl, table.md, " + (
        "accuracy_rollouts.png, accuracy_flops.png, scaling_rate.json"
    )


def _write(plan: Plan, world: World, rows: Rows, folder: Path, source: Place) -> str:
    cells = [cell for batch in batches(plan, world) for cell in batch.cells]
    check_complete(source, dict(rows), cells)
    curves = curves_of({cell: rows[cell] for cell in cells})
    rates = scaling_rates(curves)
    task = world.settings.get("task", "task")
    title = f"{task}: {len(world.problems)} problems, {plan.num_seeds} seed(s)"
    for unit in ("rollouts", "flops"):
        save_accuracy_plot(curves, unit, title, folder / f"accuracy_{unit}.png")
    rates_by_unit = {
        unit: rates_as_json(scaling_rates(curves, unit) if unit == "flops" else rates)
        for unit in ("rollouts", "flops")
    }
    write_text(folder / "scaling_rate.json", json.dumps(rates_by_unit, indent=1) + "\n")
    head = f"# {title}\n\nAccuracy in percent ± standard error, clustered by problem.\n"
    rate_text = (
        f"{RATE_MEANING}\n\n{rate_table(rates)}"
        if rates
        else "No scaling rate: it needs two methods with two budgets each."
    )
    notes = row_notes({cell: rows[cell] for cell in cells})
    rate_text = "\n\n".join([rate_text, *(f"Note: {note}" for note in notes)])
    # Rows of earlier versions lack this field.
    is_thinking = [bool(rows[cell].get("num_thinking")) for cell in cells]
    if any(is_thinking):
        rate_text += (
            f"\n\nIn {sum(is_thinking)} of {len(cells)} runs the model was still "
            "thinking when a limit was reached: raise the limit, or, if its chat "
            "template has such a switch, pass --template-switch enable_thinking=false."
        )
    report = (
        f"{head}\n{accuracy_table(curves)}\n\n{cost_table(curves)}\n\n{rate_text}\n"
    )
    write_text(folder / "table.md", report)
    summary_costs = cost_table(curves, [max(plan.budgets)])
    return f"{head}\n{accuracy_table(curves)}\n\n{summary_costs}\n\n{rate_text}"
