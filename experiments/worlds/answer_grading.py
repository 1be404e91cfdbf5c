"""The grading of a task's answers, in this process or in separate ones."""

from collections.abc import Callable, Sequence

from tsi.experiments.grading.grade import Grade
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.tasks.task import Task
from tsi.problem import Problem

Pairs = Sequence[tuple[Problem, str | None]]


def task_grading(task: Task) -> Callable[[Pairs], list[Grade]]:
    """A function from pairs of problem and answer to their grades.

    The processes of a grader start at the first call and end with this process.

    Args:
        task: has `is_correct` or a grader.

    Raises:
        ConfigurationError: the grader cannot be imported.
    """
    is_correct = task.is_correct
    if is_correct is not None:
        return lambda pairs: [
            Grade(answer is not None and is_correct(problem, answer))
            for problem, answer in pairs
        ]
    assert task.grader is not None
    return GradingPool(get_grader(task.grader)).grade
