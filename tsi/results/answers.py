"""Answers: extraction from untrusted text."""

import re

from tsi.results.canonical import canonical
from tsi.results.markup import MAX_ANSWER, brace_content
from tsi.results.numbers import DECIMAL

MAX_TEXT = 65_536

_NUMBER_IN_TEXT = re.compile(
    # The minus of "7-4" is not a sign.
    rf"(?:(?<![\w)])-)?\$?(?:{DECIMAL})(?:/\d{{1,100}})?"
)
_QUANTITY = re.compile(
    rf"\s{{0,8}}([+-]?\$?(?:{DECIMAL})(?:/\d{{1,100}})?) [A-Za-z]{{2}}"
)
_ANSWER_CUE = re.compile(r"answer (?:is|=)[: ]?|answer:|####", re.IGNORECASE)


def extract_answer(text: str) -> str | None:
    """The answer of a text: its last box, else after "answer is", else its last number.

    Args:
        text: untrusted; only its last 65,536 characters are read.

    Returns:
        The answer in canonical form, or None if the text has no answer.
    """
    text = text[-MAX_TEXT:]
    stated = canonical(find_answer(text))
    if stated is not None or _last_boxed(text) is not None:
        return stated
    return canonical(last_number(text))


def last_number(text: str) -> str | None:
    """The last number of a text; only its last 65,536 characters are read."""
    numbers = _NUMBER_IN_TEXT.findall(text[-MAX_TEXT:])
    return numbers[-1] if numbers else None


def find_answer(text: str) -> str | None:
    """The last box of a text, or else what its last "answer is" is followed by.

    Args:
        text: untrusted; only its last 65,536 characters are read.

    Returns:
        The words of the text; None if it has neither.
    """
    text = text[-MAX_TEXT:]
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    cues = list(_ANSWER_CUE.finditer(text))
    return _answer_after(text[cues[-1].end() :]) if cues else None


def _last_boxed(text: str) -> str | None:
    start = len(text)
    while (start := text.rfind("\\boxed{", 0, start)) >= 0:
        content = brace_content(text, start + len("\\boxed"))
        if content is not None:
            return content
    return None


def _answer_after(tail: str) -> str:
    line = tail[: MAX_ANSWER + 2].strip().split("\n", 1)[0]
    quantity = _QUANTITY.match(line)
    if quantity:
        return quantity.group(1)
    # A full stop ends the sentence unless a digit follows it.
    return re.split(r"\.(?!\d)", line, maxsplit=1)[0].strip(" *:,;")
