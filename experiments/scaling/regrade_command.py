"""What `tsi regrade` does: finds extractors and graders, and says what changed."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tsi.errors import ConfigurationError
from tsi.experiments.places import Place, join_place, parse_place
from tsi.experiments.scaling.regrade import Grading, Regraded, regrade
from tsi.experiments.scaling.rows import Pair
from tsi.experiments.tasks import get_task
from tsi.experiments.tasks.grading import GradingWorker
from tsi.experiments.tasks.task import Task


def regrade_run(run: str, grader: str | None = None) -> str:
    """Regrade a run, and return a text on what changed.

    Args:
        run: folder of the run, or its file of rows.
        grader: "module:function", in place of the tasks' own graders.

    Raises:
        TsiError: see `tsi.experiments.scaling.regrade.regrade`; or there is no such
            task or grader.
    """
    place: Place = parse_place(run)
    if not run.endswith(".jsonl"):
        place = join_place(place, "rows.jsonl")
    if grader is None:
        return describe(place, regrade(place, _own_grading))
    if ":" not in grader:
        raise ConfigurationError(
            f"The grader {grader!r} must be given as module:function."
        )
    with GradingWorker(grader) as worker:

        def grade(pairs: Sequence[Pair]) -> list[bool]:
            return [worker.grade(*pair).correct for pair in pairs]

        return describe(place, regrade(place, _grading_by(grade, grader)))


def describe(place: Place, regraded: Regraded) -> str:
    """What was done, in two sentences."""
    total = regraded.num_rows
    copies = ", ".join(path.name for path in regraded.copies)
    return (
        f"{place}: {regraded.num_changed} of {total} rows changed; "
        f"{regraded.num_correct} of them are correct, {regraded.num_correct_before} "
        f"were before. The earlier rows are in {copies}."
    )


def _own_grading(settings: Mapping[str, Any]) -> Grading:
    return _grading_of_task(_task_of(settings))


@functools.cache
def _grading_of_task(task: Task) -> Grading:
    def grade(pairs: Sequence[Pair]) -> list[bool]:
        return [task.is_correct(problem, answer) for problem, answer in pairs]

    return Grading(task.extract, grade)


def _grading_by(
    grade: Callable[[Sequence[Pair]], Sequence[bool]], name: str
) -> Callable[[Mapping[str, Any]], Grading]:
    def grading_of(settings: Mapping[str, Any]) -> Grading:
        return Grading(_task_of(settings).extract, grade, name)

    return grading_of


def _task_of(settings: Mapping[str, Any]) -> Task:
    return get_task(str(settings.get("task")))
