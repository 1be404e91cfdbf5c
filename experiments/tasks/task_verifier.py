"""A task's exact checks as rewards: of every prefix, or only of finished solutions.

Right has reward 0.99 and wrong 0.01, instead of 1 and 0, so that a population without a
right particle keeps its weight. These rewards use the right answer. They are an upper
bound for reward models, not a way to solve new problems.
"""

import functools
import math
from collections.abc import Callable, Sequence

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.problem import Problem

CERTAIN = math.log(0.99 / 0.01)

Check = Callable[[str, str, bool], float]


def prefix_check(task: GeneratedTask) -> Check:
    """Log-odds of a prefix, from the task's solver: can it still end right?

    The log-odds of a finished solution depend on its answer.
    """
    problem = functools.lru_cache(4096)(task.problem)

    def check(question: str, text: str, ended: bool) -> float:
        judge = task.verify if ended else task.is_on_track
        return CERTAIN if judge(problem(question), text) else -CERTAIN

    return check


def outcome_check(
    problems: Sequence[Problem],
    extract: Callable[[str], str | None],
    grade: Callable[[Sequence[tuple[Problem, str | None]]], Sequence[tuple]],
) -> Check:
    """Log-odds of a finished solution by its answer; 0 for an unfinished one.

    Args:
        problems: whose answers are compared; a problem is known by its question.
        extract: the answer of a text.
        grade: pairs of problem and answer to grades, see `tsi.experiments.grading`.

    Raises:
        ConfigurationError: two problems with different answers have the same question.
    """
    by_question: dict[str, Problem] = {}
    for problem in problems:
        other = by_question.setdefault(problem.prompt, problem)
        if other.answer != problem.answer:
            raise ConfigurationError(
                f"The problems {other.id!r} and {problem.id!r} have the same question "
                "and different answers, so that outcome-verifier cannot tell them "
                "apart; remove one of them."
            )

    def check(question: str, text: str, ended: bool) -> float:
        if not ended:
            return 0.0
        (graded,) = grade([(by_question[question], extract(text))])
        return CERTAIN if graded[0] else -CERTAIN

    return check
