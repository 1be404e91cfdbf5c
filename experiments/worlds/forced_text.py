"""Options of the command line for forced ends (`tsi.decoding.forced_end`)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tsi.decoding.forced_end import ForcedEnd
from tsi.errors import ConfigurationError

ANSWER_TOKENS = 32
"""Tokens reserved for an answer after a forced string, if the step limit allows."""


class ForcedText(NamedTuple):
    """A forced end, before it is tokenised.

    Attributes:
        string: forced before the answer; empty for none.
        answer_tokens: reserved for the answer with its end; None for the tokens that a
            step has after the string, at most `ANSWER_TOKENS`.
    """

    string: str = ""
    answer_tokens: int | None = None


def forced_text(
    end: bool, string: str | None, answer_tokens: int | None
) -> ForcedText | None:
    """The forced end that the options describe; None for no forced end.

    Args:
        end: whether solutions are forced to end.
        string: before the answer; implies `end`.
        answer_tokens: after the string.

    Raises:
        ConfigurationError: the string is empty, or there are tokens for an answer
            without a string.
    """
    if string == "":
        raise ConfigurationError(
            "The forced string is empty; use --forced-end to force only the end."
        )
    if string is None and answer_tokens is not None:
        raise ConfigurationError(
            "--forced-end-tokens are the tokens after a forced string; give "
            "--forced-end-string too, or leave them out."
        )
    if string is None:
        return ForcedText() if end else None
    return ForcedText(string, answer_tokens)


def forced_end_of(
    text: ForcedText,
    encode: Callable[[str], Sequence[int]],
    max_step_tokens: int,
    max_tokens: int,
) -> ForcedEnd:
    """The forced end in the policy's tokens.

    Args:
        text: before it is tokenised.
        encode: a text to the policy's token ids.
        max_step_tokens, max_tokens: of the target.

    Raises:
        ConfigurationError: the string has no tokens in the vocabulary.
    """
    if not text.string:
        return ForcedEnd()
    ids = tuple(encode(text.string))
    if not ids:
        raise ConfigurationError(
            f"The forced string {text.string!r} has no tokens in the policy's "
            "vocabulary; give another."
        )
    answer = text.answer_tokens
    if answer is None:
        available = min(max_step_tokens, max_tokens) - len(ids)
        answer = max(1, min(ANSWER_TOKENS, available))
    return ForcedEnd(ids, answer)


def forced_settings(text: ForcedText, forced: ForcedEnd) -> dict[str, Any]:
    """The settings that rows record.

    >>> forced_settings(ForcedText("So"), ForcedEnd((7, 2), 3))
    {'forced_end': {'string': 'So', 'answer_tokens': 3}}
    >>> forced_settings(ForcedText(), ForcedEnd())
    {'forced_end': {'string': ''}}
    """
    settings: dict[str, Any] = {"string": text.string}
    if text.string:
        settings["answer_tokens"] = forced.answer_tokens
    return {"forced_end": settings}
