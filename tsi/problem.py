"""A problem: its question, its right answer, and the id that seeds it."""

from typing import Any, NamedTuple


class Problem(NamedTuple):
    """One question of a task.

    The random stream of a problem depends only on the run's key and the id
    (:mod:`tsi.problem_ids`), so its result does not depend on which problems share a
    batch.

    Args:
        id: an integer from 0 to 2^32 - 1 or a string, unique within a run.
        prompt: the question as the policy reads it, before any chat template.
        answer: the canonical right answer, or one of them if the task has a verifier.
        data: further data for the task's verifier; JSON types only.
    """

    id: int | str
    prompt: str
    answer: str
    data: dict[str, Any] = {}  # noqa: RUF012  (a field default that nobody mutates)
