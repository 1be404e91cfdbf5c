"""A task's exact checks as rewards: of every prefix, or of finished solutions alone.

What is judged right has reward 0.99 and what is judged wrong 0.01, not 1 and 0, so that
a population without a right member goes on. These rewards know the answer: they are
the most that a reward model could tell, to compare one with, and no way to solve what
nobody can check.
"""

import functools
import math
from collections.abc import Callable

from tsi.experiments.tasks import Task

CERTAIN = math.log(0.99 / 0.01)

Check = Callable[[str, str, bool], float]


def prefix_check(task: Task) -> Check:
    """Log-odds of a prefix: can it still end right, as the task's solver knows?

    A solution that has ended is judged by its answer.
    """
    problem = functools.lru_cache(4096)(task.problem)

    def check(question: str, text: str, ended: bool) -> float:
        judge = task.verify if ended else task.is_on_track
        return CERTAIN if judge(problem(question), text) else -CERTAIN

    return check


def outcome_check(task: Task) -> Check:
    """Log-odds of a finished solution by its answer; 0 of one that has not ended."""
    problem = functools.lru_cache(4096)(task.problem)

    def check(question: str, text: str, ended: bool) -> float:
        if not ended:
            return 0.0
        return CERTAIN if task.verify(problem(question), text) else -CERTAIN

    return check
