"""A plan compared with the existing rows: errors, and notes for the user."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tsi.errors import ResultsError
from tsi.experiments.files.places import Place
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import budgets_of
from tsi.experiments.plans.plan import ExperimentPlan
from tsi.problem import Problem
from tsi.problem_ids import plain_id

MAX_NAMES = 5


def check_problems(
    path: Place, rows: Mapping[Cell, Mapping[str, Any]], problems: Sequence[Problem]
) -> None:
    """Refuse rows of a problem that has the id of another one.

    Raises:
        ResultsError: a row has another prompt or right answer than the problem with its
            id.
    """
    by_id = {plain_id(problem.id): problem for problem in problems}
    for cell, row in rows.items():
        problem = by_id.get(cell.problem)
        if problem is None:
            continue
        for name, new_value in (("prompt", problem.prompt), ("answer", problem.answer)):
            recorded_value = row.get(name, new_value)
            if recorded_value != new_value:
                raise ResultsError(
                    f"{path} has rows of another problem {cell.problem!r}: its {name} "
                    f"is {_shorten(recorded_value)} there, and {_shorten(new_value)} "
                    "now. Give the problem that was changed a new id, or choose "
                    "another output folder."
                )


def print_plan_change(
    path: Place,
    rows: Mapping[Cell, Any],
    plan: ExperimentPlan,
    problems: Sequence[Problem],
) -> None:
    """Print on standard error which existing rows are not in the plan."""
    text = plan_change(rows, plan, problems)
    if text:
        print(
            f"{path} also has rows that are not in this plan, of {text}. They "
            "are kept, and left out of the report; for them, run the earlier plan.",
            file=sys.stderr,
        )


def plan_change(
    rows: Iterable[Cell], plan: ExperimentPlan, problems: Sequence[Problem]
) -> str:
    """The methods, budgets, seeds and problems of rows that a plan leaves out.

    Returns:
        A text, which is empty if it leaves out none.
    """
    budgets = {name: set(budgets_of(name, plan.budgets)) for name in plan.methods}
    all_budgets = set(plan.budgets).union(*budgets.values())
    ids = {plain_id(problem.id) for problem in problems}
    others: dict[str, dict[Any, None]] = {
        "methods": {},
        "budgets": {},
        "seeds": {},
        "problems": {},
    }
    for cell in rows:
        if cell.method not in budgets:
            others["methods"][cell.method] = None
        if cell.budget not in all_budgets:
            others["budgets"][cell.budget] = None
        if cell.seed >= plan.num_seeds:
            others["seeds"][cell.seed] = None
        if cell.problem not in ids:
            others["problems"][cell.problem] = None
    return "; ".join(
        f"{kind} {_list(list(names))}" for kind, names in others.items() if names
    )


def _list(names: list[Any]) -> str:
    text = ", ".join(map(str, names[:MAX_NAMES]))
    return (
        text if len(names) <= MAX_NAMES else f"{text} and {len(names) - MAX_NAMES} more"
    )


def _shorten(text: object) -> str:
    representation = repr(text)
    return representation if len(representation) <= 80 else f"{representation[:80]}..."
