"""The problems of a run, and the exact checks of a task that rewards use."""

from collections.abc import Sequence

from tsi.engine.sizing.memory import free_bytes
from tsi.errors import ConfigurationError
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.tasks.task import Split, Task
from tsi.experiments.tasks.task_verifier import Check, outcome_check, prefix_check
from tsi.experiments.worlds.answer_grading import AnswerGrading
from tsi.experiments.worlds.world import PROBLEM_SEED
from tsi.problem import Problem

PROBLEM_BYTES = 550
"""Memory of a problem of the task with the shorter prompts."""


def resolve_problems(
    task: Task, problems: int | Sequence[Problem] | None, split: Split
) -> Sequence[Problem]:
    """The problems themselves, which the task's grader can grade.

    Args:
        task: of the problems.
        problems: number of problems, the problems themselves, or None for all. Of the
            problems themselves, those without a right answer are not graded.
        split: of the task.

    Raises:
        ConfigurationError: there are none, they do not fit into memory, or nothing can
            be graded by a right answer.
    """
    if isinstance(problems, int):
        check_problem_count(problems)
    is_given = problems is not None and not isinstance(problems, int)
    if problems is None or isinstance(problems, int):
        problems = task.problems(split, problems, PROBLEM_SEED)
    if not problems:
        raise ConfigurationError(f"The task {task.name} was given no problems.")
    if task.grader is not None:
        graded = [problem for problem in problems if problem.answer or not is_given]
        get_grader(task.grader).check(graded)
    return problems


def checks_of(
    kind: str | None, task: Task, problems: Sequence[Problem]
) -> dict[str, Check]:
    """The exact checks of a task that a kind of reward needs, by its name.

    Raises:
        ConfigurationError: the task has no check of unfinished solutions.
    """
    if kind == "outcome-verifier":
        return {kind: outcome_check(problems, task.extract, AnswerGrading(task))}
    if kind != "verifier":
        return {}
    if not isinstance(task, GeneratedTask):
        raise ConfigurationError(
            f"The task {task.name} has no check of unfinished solutions, which the "
            "reward verifier needs; use outcome-verifier, or another reward."
        )
    return {kind: prefix_check(task)}


def check_problem_count(problems: int) -> None:
    """Refuse more problems than fit into memory, before they are generated.

    Raises:
        ConfigurationError: they do not fit.
    """
    needed_bytes, available_bytes = problems * PROBLEM_BYTES, free_bytes()
    if needed_bytes > available_bytes:
        raise ConfigurationError(
            f"{problems:,} problems take {needed_bytes / 1e9:,.0f} GB or more, and "
            f"{available_bytes / 1e9:,.0f} GB are free: no more than about "
            f"{available_bytes // PROBLEM_BYTES:,} fit. Ask for fewer."
        )
