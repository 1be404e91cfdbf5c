"""`tsi regrade`: find extractors and graders, and report what changed."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from tsi.errors import ConfigurationError
from tsi.experiments.files.places import Place, join_place, parse_place
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.rows.graded_run import Grading
from tsi.experiments.rows.regrade import Correct, Regraded, regrade
from tsi.experiments.tasks import TASKS, get_task
from tsi.experiments.tasks.data_files import file_sha256
from tsi.experiments.tasks.gym import PREFIX
from tsi.experiments.tasks.own_file import CHOICES_BELOW, show_choices
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
        grader: name of a grader or "module:function", in place of the rows' own; "task"
            for that of the task. It also finds the answers in the texts, except for a
            function without an extractor on a task that has one of its own.
        problems: a file with corrected answers; problems are matched by their ids.
        columns: names of its columns.

    Raises:
        TsiError: see `tsi.experiments.rows.regrade.regrade`; or there is no such
            task or grader, the file is refused, or a question in it was changed.
    """
    place: Place = parse_place(run)
    if not run.endswith(".jsonl"):
        place = join_place(place, "rows.jsonl")

    file: dict[str, Any] = {}
    if problems is not None:
        file = {"problems_sha256": file_sha256(problems)}

    def grading_of(settings: Mapping[str, Any]) -> Grading:
        grading = choose_grading(settings, grader, pools)
        if problems is not None and "problems_sha256" not in settings:
            raise ConfigurationError(
                f"{place} has rows of the task {settings.get('task')!r}, which has no "
                "file of problems; leave --problems out."
            )
        return grading._replace(settings=dict(grading.settings) | file)

    correct = None
    if problems is not None:
        correct = correction(problems, columns)
    with GraderPools() as pools:
        text = describe(place, regrade(place, grading_of, correct))
        return text, pools.summaries()


class GraderPools(contextlib.ExitStack):
    """The pools of the graders of one run, by name, which are closed together.

    A pool remembers grades by problem id, so it must not be shared between runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pools: dict[str, GradingPool] = {}

    def get(self, name: str) -> GradingPool:
        """The pool of a grader, which is started if it is new.

        Raises:
            TsiError: there is no such grader.
        """
        if name not in self._pools:
            self._pools[name] = self.enter_context(GradingPool(get_grader(name)))
        return self._pools[name]

    def summaries(self) -> list[str]:
        """A sentence for each grader that failed on some answers."""
        found = [pool.summary() for pool in self._pools.values()]
        return [summary for summary in found if summary is not None]


def choose_grading(
    settings: Mapping[str, Any], grader: str | None, pools: GraderPools
) -> Grading:
    """The extractor and grader of rows with these settings.

    Args:
        settings: of the rows.
        grader: see `regrade_run`.
        pools: of the run.

    Raises:
        TsiError: there is no such task or grader.
    """
    recorded_grader = settings.get("grader")
    name = None if recorded_grader is None else str(recorded_grader)
    task = task_of(settings)
    if grader is None:
        return _own_grading(task, name, pools)
    if grader == OWN_GRADER:
        if task is None:
            raise ConfigurationError(
                f"The task {settings.get('task')!r} of these rows has no grader of its "
                "own; choose one with --grader, such as math."
            )
        in_task = BENCHMARKS[task] if task in BENCHMARKS else get_task(task)
        own_grading = _own_grading(task, in_task.grader, pools)
        return own_grading._replace(settings={"grader": in_task.grader})
    return _grading_by(grader, task, pools)._replace(settings={"grader": grader})


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

    def correct(problem: Problem) -> Problem:
        key = str(problem.id)
        if key not in problems:
            raise ConfigurationError(
                f"{path} has no problem {problem.id!r}, of which the run has rows. It "
                "must have all problems of the run, with their ids."
            )
        corrected = problems[key]
        if problem.prompt.startswith(f"{corrected.prompt}{CHOICES_BELOW}"):
            # The run had the grader choice; with others a column of this name is data.
            corrected = show_choices(corrected, path)
        if problem.prompt != corrected.prompt:
            raise ConfigurationError(
                f"The question of problem {problem.id!r} in {path} is another than in "
                "the run, whose texts answer the earlier one. Only answers can be "
                "corrected; run a changed question anew."
            )
        return problem._replace(answer=corrected.answer)

    return correct


def describe(place: Place, regraded: Regraded) -> str:
    """What was done, in two sentences."""
    copies = ", ".join(path.name for path in regraded.copies)
    return (
        f"{place}: {regraded.num_changed} of {regraded.num_rows} rows changed; "
        f"{regraded.num_correct} rows are correct, and {regraded.num_correct_before} "
        f"were before. The earlier rows are in {copies}."
    )


def _own_grading(
    task_name: str | None, grader: str | None, pools: GraderPools
) -> Grading:
    """The extractor and grader of rows.

    Args:
        task_name: None for the user's own file.
        grader: that the rows record.
        pools: of the run.
    """
    if _is_generated(task_name):
        task = get_task(task_name)
        if task.grader == grader:
            if grader is None:
                return Grading(task.extract, AnswerGrading(task))
            return _grading_by(grader, task_name, pools)._replace(extract=task.extract)
    if grader is None:
        raise ConfigurationError(
            "The rows record no grader, and their task is not known here; name the "
            "grader with --grader."
        )
    return _grading_by(grader, task_name, pools)


def _grading_by(name: str, task_name: str | None, pools: GraderPools) -> Grading:
    """The grader of that name, and what it grades in the texts of a task."""
    pool = pools.get(name)
    extract = pool.grader.extract
    # Files and benchmarks have no extractor but that of a named grader.
    if _is_generated(task_name):
        task = get_task(task_name)
        extract = pool.grader.extractor_for(task.extract, task.grader)
    return Grading(extract, pool.grade, check=pool.grader.check)


def _is_generated(task_name: str | None) -> TypeGuard[str]:
    """Whether the name is that of a task with its own extractor."""
    return task_name is not None and (
        task_name in TASKS or task_name.startswith(PREFIX)
    )
