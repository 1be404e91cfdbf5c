"""What `tsi regrade` does: finds extractors and graders, and says what changed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tsi.experiments.grading.grader import GRADERS, get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.places import Place, join_place, parse_place
from tsi.experiments.scaling.regrade import Grading, Regraded, regrade
from tsi.experiments.scaling.rows import Pair
from tsi.experiments.tasks import get_task
from tsi.experiments.tasks.gym import PREFIX
from tsi.experiments.worlds.answer_grading import task_grading


def regrade_run(run: str, grader: str | None = None) -> str:
    """Regrade a run, and return a text on what changed.

    Args:
        run: folder of the run, or its file of rows.
        grader: name of a grader or "module:function", in place of the recorded one. A
            named grader also finds the answers in the texts.

    Raises:
        TsiError: see `tsi.experiments.scaling.regrade.regrade`; or there is no such
            task or grader.
    """
    place: Place = parse_place(run)
    if not run.endswith(".jsonl"):
        place = join_place(place, "rows.jsonl")
    if grader is None:
        return describe(place, regrade(place, _recorded_grading()))
    chosen, recorded = _named_grading(grader), _recorded_grading()

    def grading_of(settings: Mapping[str, Any]) -> Grading:
        extract = chosen.extract
        if grader not in GRADERS:
            extract = recorded(settings).extract
        return Grading(extract, chosen.grade, grader)

    return describe(place, regrade(place, grading_of))


def describe(place: Place, regraded: Regraded) -> str:
    """What was done, in two sentences."""
    total = regraded.num_rows
    copies = ", ".join(path.name for path in regraded.copies)
    return (
        f"{place}: {regraded.num_changed} of {total} rows changed; "
        f"{regraded.num_correct} of them are correct, {regraded.num_correct_before} "
        f"were before. The earlier rows are in {copies}."
    )


def _recorded_grading() -> Callable[[Mapping[str, Any]], Grading]:
    """From the settings of rows to the grading with which they were made."""
    known: dict[tuple[str, str | None], Grading] = {}

    def grading_of(settings: Mapping[str, Any]) -> Grading:
        name, grader = str(settings.get("task")), settings.get("grader")
        if (name, grader) not in known:
            # A task of a file or a benchmark is its grader; others extract themselves.
            is_listed = grader is not None and not name.startswith(PREFIX)
            known[name, grader] = (
                _named_grading(str(grader)) if is_listed else _grading_of_task(name)
            )
        return known[name, grader]

    return grading_of


def _named_grading(name: str) -> Grading:
    grader = get_grader(name)
    pool = GradingPool(grader)

    def grade(pairs: Sequence[Pair]) -> list[bool]:
        return [grade.correct for grade in pool.grade(pairs)]

    return Grading(grader.extract, grade)


def _grading_of_task(name: str) -> Grading:
    task = get_task(name)
    grade_answers = task_grading(task)

    def grade(pairs: Sequence[Pair]) -> list[bool]:
        return [grade.correct for grade in grade_answers(pairs)]

    return Grading(task.extract, grade)
