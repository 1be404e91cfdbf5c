"""The grade of an answer."""

from typing import NamedTuple


class Grade(NamedTuple):
    """The grade of an answer.

    Args:
        correct: whether the answer is right; False if it could not be graded.
        failure: None, or why the answer could not be graded: "timeout", "memory",
            "crash", "too long" or "error: NAME".
    """

    correct: bool
    failure: str | None = None
