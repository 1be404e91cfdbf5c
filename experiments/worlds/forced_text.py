"""What a solution is made to write at a limit, as the command line says it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tsi.decoding.forced_end import ForcedEnd
from tsi.errors import ConfigurationError

ANSWER_TOKENS = 32
"""Tokens that are kept for an answer behind a forced string, if a step has them."""


class ForcedText(NamedTuple):
    """What is asked for.

    Attributes:
        string: that a solution must have before its answer; empty for none.
        answer_tokens: kept for the answer, its end included; None for what a step has
            left behind the string, at most `ANSWER_TOKENS`.
    """

    string: str = ""
    answer_tokens: int | None = None


def forced_text(
    end: bool, string: str | None, answer_tokens: int | None
) -> ForcedText | None:
    """What options ask for; None for nothing.

    Args:
        end: whether solutions are forced to end.
        string: before the answer; implies `end`.
        answer_tokens: behind the string.

    Raises:
        ConfigurationError: the string is empty, or an answer is given room where no
            string is.
    """
    if string == "":
        raise ConfigurationError(
            "The forced string is empty; leave it out, and --forced-end forces the end "
            "alone."
        )
    if string is None and answer_tokens is not None:
        raise ConfigurationError(
            "--forced-end-tokens are those behind a forced string; give "
            "--forced-end-string, or leave them out."
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
    """The same in the policy's tokens.

    Args:
        text: what is asked for.
        encode: a text to the policy's token ids.
        max_step_tokens, max_tokens: of the target.

    Raises:
        ConfigurationError: the vocabulary cannot spell the string, or has no token for
            it.
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
    """What rows depend on.

    >>> forced_settings(ForcedText("So"), ForcedEnd((7, 2), 3))
    {'forced_end': {'string': 'So', 'answer_tokens': 3}}
    >>> forced_settings(ForcedText(), ForcedEnd())
    {'forced_end': {'string': ''}}
    """
    settings: dict[str, Any] = {"string": text.string}
    if text.string:
        settings["answer_tokens"] = forced.answer_tokens
    return {"forced_end": settings}
