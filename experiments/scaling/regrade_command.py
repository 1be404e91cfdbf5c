"""What `tsi regrade` does: finds extractors and graders, and says what changed."""

import functools
from collections.abc import Mapping
from typing import Any

from tsi.experiments.grading.grader import get_grader, is_named
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.places import Place, join_place, parse_place
from tsi.experiments.scaling.regrade import Grading, Regraded, regrade
from tsi.experiments.tasks import TASKS, get_task
from tsi.experiments.tasks.gym import PREFIX
from tsi.experiments.tasks.published import BENCHMARKS
from tsi.experiments.worlds.answer_grading import AnswerGrading


def regrade_run(run: str, grader: str | None = None) -> tuple[str, list[str]]:
    """Regrade a run, and return what changed, and notes on ungraded answers.

    Args:
        run: folder of the run, or its file of rows.
        grader: name of a grader or "module:function", in place of the rows' own. A
            named grader also finds the answers in the texts.

    Raises:
        TsiError: see `tsi.experiments.scaling.regrade.regrade`; or there is no such
            task or grader.
    """
    place: Place = parse_place(run)
    if not run.endswith(".jsonl"):
        place = join_place(place, "rows.jsonl")

    used: list[Grading] = []

    def grading_of(settings: Mapping[str, Any]) -> Grading:
        used.append(choose(settings))
        return used[-1]

    def choose(settings: Mapping[str, Any]) -> Grading:
        recorded = settings.get("grader")
        if grader is None:
            return _own_grading(str(settings.get("task")), recorded and str(recorded))
        chosen = _grading_by(grader)._replace(name=grader)
        if is_named(grader):
            return chosen
        # A function of one's own grades what the rows' own grader finds in the texts.
        own = _own_grading(str(settings.get("task")), recorded and str(recorded))
        return chosen._replace(extract=own.extract)

    text = describe(place, regrade(place, grading_of))
    notes = [_summary(grading.grade) for grading in used]
    return text, list(dict.fromkeys(note for note in notes if note is not None))


def _summary(grade: Any) -> str | None:
    """The summary of an `AnswerGrading`, or of the pool whose method this is."""
    return getattr(grade, "__self__", grade).summary()


def describe(place: Place, regraded: Regraded) -> str:
    """What was done, in two sentences."""
    copies = ", ".join(path.name for path in regraded.copies)
    return (
        f"{place}: {regraded.num_changed} of {regraded.num_rows} rows changed; "
        f"{regraded.num_correct} rows are correct, and {regraded.num_correct_before} "
        f"were before. The earlier rows are in {copies}."
    )


@functools.cache
def _own_grading(task_name: str, grader: str | None) -> Grading:
    """The extractor and grader of rows of a task, without its problems."""
    if grader is None or task_name in TASKS or task_name.startswith(PREFIX):
        task = get_task(task_name)
        # A file of problems may have the name of a task.
        if task.grader == grader:
            return Grading(task.extract, AnswerGrading(task))
        if not is_named(str(grader)):
            return _grading_by(str(grader))._replace(extract=task.extract)
    if task_name in BENCHMARKS and not is_named(str(grader)):
        extract = get_grader(BENCHMARKS[task_name].grader).extract
        return _grading_by(str(grader))._replace(extract=extract)
    return _grading_by(str(grader))


@functools.cache
def _grading_by(name: str) -> Grading:
    grader = get_grader(name)
    return Grading(grader.extract, GradingPool(grader).grade)
