"""`tsi regrade`: find extractors and graders, and report what changed."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsi.errors import ConfigurationError
from tsi.experiments.files.places import Place, join_place, parse_place
from tsi.experiments.grading.grader import get_grader, is_named
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.scaling.graded_run import Grading
from tsi.experiments.scaling.regrade import Correct, Regraded, regrade
from tsi.experiments.tasks import TASKS, get_task
from tsi.experiments.tasks.data_files import file_sha256
from tsi.experiments.tasks.gym import PREFIX
from tsi.experiments.tasks.own_file import has_choices, show_choices
from tsi.experiments.tasks.problem_file import Columns, read_problems
from tsi.experiments.tasks.published import BENCHMARKS
from tsi.experiments.worlds.answer_grading import AnswerGrading
from tsi.problem import Problem

OWN_GRADER = "task"
"""Name of the task's own grader."""


def regrade_run(
    run: str,
    grader: str | None = None,
    problems: Path | None = None,
    columns: Columns = Columns(),  # noqa: B008
) -> tuple[str, list[str]]:
    """Regrade a run, and return what changed, and notes on ungraded answers.

    Args:
        run: folder of the run, or its file of rows.
        grader: name of a grader or "module:function", instead of the rows' own; "task"
            for that of the task. A named grader also finds the answers in the texts.
        problems: a file with corrected answers; problems are matched by their ids.
        columns: names of its columns.

    Raises:
        TsiError: see `tsi.experiments.scaling.regrade.regrade`; or there is no such
            task or grader, the file is refused, or a question in it was changed.
    """
    place: Place = parse_place(run)
    if not run.endswith(".jsonl"):
        place = join_place(place, "rows.jsonl")

    gradings: list[Grading] = []
    file: dict[str, Any] = {}
    if problems is not None:
        file = {"problems_sha256": file_sha256(problems)}

    def grading_of(settings: Mapping[str, Any]) -> Grading:
        grading = choose_grading(settings, grader)
        if problems is not None and "problems_sha256" not in settings:
            raise ConfigurationError(
                f"{place} has rows of the task {settings.get('task')!r}, which has no "
                "file of problems; leave --problems out."
            )
        gradings.append(grading._replace(settings=dict(grading.settings) | file))
        return gradings[-1]

    correct = None
    if problems is not None:
        correct = correction(problems, columns)
    text = describe(place, regrade(place, grading_of, correct))
    notes = [_summary(grading.grade) for grading in gradings]
    return text, list(dict.fromkeys(note for note in notes if note is not None))


def choose_grading(settings: Mapping[str, Any], grader: str | None) -> Grading:
    """The extractor and grader of rows with these settings.

    Args:
        settings: of the rows.
        grader: see `regrade_run`.

    Raises:
        TsiError: there is no such task or grader.
    """
    recorded = settings.get("grader")
    name = None if recorded is None else str(recorded)
    task = task_of(settings)
    if grader is None:
        return _own_grading(task, name)
    if grader == OWN_GRADER:
        if task is None:
            raise ConfigurationError(
                f"The task {settings.get('task')!r} of these rows has no grader of its "
                "own; choose one with --grader, such as math."
            )
        in_task = BENCHMARKS[task] if task in BENCHMARKS else get_task(task)
        own_grading = _own_grading(task, in_task.grader)
        return own_grading._replace(settings={"grader": in_task.grader})
    grading = _grading_by(grader)._replace(settings={"grader": grader})
    if is_named(grader):
        return grading
    # A user's function grades what the rows' own grader finds in the texts.
    return grading._replace(extract=_own_grading(task, name).extract)


def task_of(settings: Mapping[str, Any]) -> str | None:
    """The name of the task of rows, or None if they are of the user's own file.

    A file that is named like a task is recorded as "file:NAME". Rows of earlier
    versions have only its name, and the hash of the file, which generated tasks do not
    have.
    """
    name = str(settings.get("task"))
    is_generated = name in TASKS or name.startswith(PREFIX)
    if is_generated:
        return None if "problems_sha256" in settings else name
    return name if name in BENCHMARKS else None


def correction(path: Path, columns: Columns) -> Correct:
    """Corrects right answers by those of a file, matched by id.

    Args:
        path: of the corrected file.
        columns: names of its columns.

    Raises:
        ConfigurationError: the file is refused.
    """
    problems = {str(problem.id): problem for problem in read_problems(path, columns)}
    # With the grader choice, the choices stand below a question.
    shown = {
        key: show_choices(problem, path).prompt if has_choices(problem) else None
        for key, problem in problems.items()
    }

    def correct(problem: Problem) -> Problem:
        key = str(problem.id)
        if key not in problems:
            raise ConfigurationError(
                f"{path} has no problem {problem.id!r}, of which the run has rows. It "
                "must have all problems of the run, with their ids."
            )
        if problem.prompt not in (problems[key].prompt, shown[key]):
            raise ConfigurationError(
                f"The question of problem {problem.id!r} in {path} is another than in "
                "the run, whose texts answer the earlier one. Only answers can be "
                "corrected; run a changed question anew."
            )
        return problem._replace(answer=problems[key].answer)

    return correct


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
def _own_grading(task_name: str | None, grader: str | None) -> Grading:
    """The extractor and grader of rows.

    Args:
        task_name: None for the user's own file.
        grader: that the rows record.
    """
    if task_name is not None and (task_name in TASKS or task_name.startswith(PREFIX)):
        task = get_task(task_name)
        if task.grader == grader:
            return Grading(task.extract, AnswerGrading(task))
        if not is_named(str(grader)):
            return _grading_by(str(grader))._replace(extract=task.extract)
    if task_name in BENCHMARKS and not is_named(str(grader)):
        extract = get_grader(BENCHMARKS[task_name].grader).extract
        return _grading_by(str(grader))._replace(extract=extract)
    if grader is None:
        raise ConfigurationError(
            "The rows record no grader, and their task is not known here; name the "
            "grader with --grader."
        )
    return _grading_by(grader)


@functools.cache
def _grading_by(name: str) -> Grading:
    grader = get_grader(name)
    return Grading(grader.extract, GradingPool(grader).grade)
