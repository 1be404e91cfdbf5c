"""The grading of a task's answers, in this process or in separate ones."""

from collections.abc import Sequence

from tsi.experiments.grading.grade import Grade
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.grading.pool import GradingPool
from tsi.experiments.tasks.task import Task
from tsi.problem import Problem

Pairs = Sequence[tuple[Problem, str | None]]


class AnswerGrading:
    """From pairs of problem and answer to their grades.

    The processes of a grader start before the first call and end with this process.

    Args:
        task: has `is_correct` or a grader.

    Raises:
        ConfigurationError: the grader cannot be imported.
    """

    def __init__(self, task: Task) -> None:
        self._is_correct = task.is_correct
        self._pool: GradingPool | None = None
        if task.grader is not None:
            self._pool = GradingPool(get_grader(task.grader))

    def __call__(self, pairs: Pairs) -> list[Grade]:
        """The grades of some answers, in their order."""
        if self._pool is not None:
            return self._pool.grade(pairs)
        is_correct = self._is_correct
        assert is_correct is not None
        return [
            Grade(answer is not None and is_correct(problem, answer))
            for problem, answer in pairs
        ]

    def summary(self) -> str | None:
        """A sentence that names the answers that could not be graded, if any."""
        return None if self._pool is None else self._pool.summary()
