"""A task's exact checks as rewards: of every prefix, or of finished solutions alone.

Right has reward 0.99 and wrong 0.01, and not 1 and 0, so that a population without a
right particle keeps its weight. These rewards know the answer. They are an upper bound
to compare reward models with, and not a way to solve new problems.
"""

import functools
import math
from collections.abc import Callable

from tsi.experiments.tasks import Task

CERTAIN = math.log(0.99 / 0.01)

Check = Callable[[str, str, bool], float]


def prefix_check(task: Task) -> Check:
    """Log-odds of a prefix, from the task's solver: can it still end right?

    A finished solution is judged by its answer.
    """
    problem = functools.lru_cache(4096)(task.problem)

    def check(question: str, text: str, ended: bool) -> float:
        judge = task.verify if ended else task.is_on_track
        return CERTAIN if judge(problem(question), text) else -CERTAIN

    return check


def outcome_check(task: Task) -> Check:
    """Log-odds of a finished solution by its answer; 0 for an unfinished one."""
    problem = functools.lru_cache(4096)(task.problem)

    def check(question: str, text: str, ended: bool) -> float:
        if not ended:
            return 0.0
        return CERTAIN if task.verify(problem(question), text) else -CERTAIN

    return check
