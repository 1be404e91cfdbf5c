"""A problem: what is asked, what is right, and the number that seeds it."""

from typing import Any, NamedTuple


class Problem(NamedTuple):
    """One question of a task.

    The random stream of a problem is ``fold_in(key, problem.id)``, so its result does
    not depend on which problems share a batch.

    Args:
        id: a non-negative number below 2^32, unique within the task.
        prompt: the question as the policy reads it, before any chat template.
        answer: the canonical right answer, or one of them if the task has a verifier.
        data: what the task's verifier needs besides the answer; JSON types only.
    """

    id: int
    prompt: str
    answer: str
    data: dict[str, Any] = {}  # noqa: RUF012  (a field default that nobody mutates)
