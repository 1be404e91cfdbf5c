"""The grader "exact": the answer is the gold answer, character by character.

Spaces around both do not count, and neither does the form in which Unicode writes a
character (NFC).
"""

import unicodedata

from tsi.problem import Problem
from tsi.results.answers import MAX_TEXT, find_answer


def extract(text: str) -> str | None:
    """The text of the last box, else after the last "answer is", else the last line."""
    answer = find_answer(text, MAX_TEXT)
    if answer is None:
        lines = text.strip().rsplit("\n", 1)
        answer = lines[-1]
    return answer.strip() or None


def is_correct(problem: Problem, answer: str) -> bool:
    """Whether the two are the same text."""
    return _normalise(answer) == _normalise(problem.answer)


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())
