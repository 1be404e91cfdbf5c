"""Texts of a solution and of its steps: what decoding all of its tokens gives.

A token's text depends on its neighbours. SentencePiece tokenizers drop the space before
the first word of whatever they are given, so that steps decoded one by one lose the
spaces between them; and a character of several bytes may be cut by the end of a step,
which leaves a replacement mark on either side. So nothing is decoded but the beginning
of a solution, from its first token on, and a step's text is the difference of two such
beginnings. The texts of the steps, joined, are the text of the solution.

What the next tokens may still change is held back: while a solution goes on, the
replacement marks at its end may be half a character, and the whole one counts for the
step that completes it. Rewards and results both read texts from here, so that they read
the same.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

Decode = Callable[[list[int]], str]

REPLACEMENT_MARK = "\ufffd"


def text_so_far(decode: Decode, tokens: list[int], *, finished: bool) -> str:
    """The text of a solution's first tokens, without a character that has only begun.

    Args:
        decode: token ids to text.
        tokens: from the solution's first on.
        finished: whether nothing follows; then every byte counts.
    """
    text = decode(tokens)
    return text if finished else text.rstrip(REPLACEMENT_MARK)


def texts_of_steps(
    decode: Decode, tokens: list[int], ends: Sequence[int], *, finished: bool
) -> list[str]:
    """The text of each step; joined, they are that of the whole solution.

    Args:
        decode: token ids to text.
        tokens: of the solution, padding allowed behind it.
        ends: increasing lengths in tokens after each step, the last that of all.
        finished: whether nothing follows.
    """
    if not ends:
        return []
    whole = text_so_far(decode, tokens[: ends[-1]], finished=finished)
    before = (text_so_far(decode, tokens[:end], finished=False) for end in ends[:-1])
    # A decoder that changes what it gave before must not make a step negative.
    places = itertools.accumulate((num_common(text, whole) for text in before), max)
    cuts = [0, *places, len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(cuts)]


class Decoded(NamedTuple):
    """What is known of the text of a solution's first steps.

    Attributes:
        tokens: of the solution.
        ends: increasing lengths in tokens after each step.
        places: the length in characters of the text after each; all of these texts
            are beginnings of the last one.
        text: after the last step, without a character that has only begun.
    """

    tokens: Int[np.ndarray, " T"]
    ends: tuple[int, ...]
    places: tuple[int, ...]
    text: str


NO_TEXT = Decoded(np.zeros(0, np.int32), (), (), "")
"""Of a solution without steps."""


def texts_of_more_steps(
    decode: Decode,
    before: Decoded,
    tokens: Int[np.ndarray, " T"],
    ends: Sequence[int],
    *,
    finished: bool,
) -> tuple[list[str], Decoded]:
    """The same as `texts_of_steps`, where much of the solution was decoded before.

    The whole is decoded once; steps that were known are not decoded again, as long as
    the text begins with theirs.

    Args:
        decode: token ids to text.
        before: of this solution or another, which it may have parted from.
        tokens: of the solution, padding allowed behind it.
        ends: increasing lengths in tokens after each step, at least one.
        finished: whether nothing follows.
    """
    whole = text_so_far(decode, tokens[: ends[-1]].tolist(), finished=finished)
    known = num_common(before.ends, tuple(ends[:-1]))
    length, place = (x[known - 1] if known else 0 for x in before[1:3])
    if not (
        whole.startswith(before.text[:place])
        and np.array_equal(before.tokens[:length], tokens[:length])
    ):
        known = 0
    texts = [
        text_so_far(decode, tokens[:end].tolist(), finished=False)
        for end in ends[known:-1]
    ]
    common = [num_common(text, whole) for text in texts]
    places = itertools.accumulate([*before.places[:known], *common], max)
    cuts = [0, *places, len(whole)]
    steps = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    text = whole.rstrip(REPLACEMENT_MARK) if finished else whole
    sizes = [*before.places[:known], *map(len, texts), len(text)]
    if common != list(map(len, texts)) or sizes != sorted(sizes):
        # A decoder that changes what it gave before is asked for everything again.
        return steps, NO_TEXT
    # A copy, for a view would keep the tokens of all rows of its batch.
    return steps, Decoded(tokens[: ends[-1]].copy(), tuple(ends), tuple(sizes), text)


def text_after(decode: Decode, before: list[int], tokens: list[int]) -> str:
    """What tokens add to the text of those before them, which is whole by itself.

    Args:
        decode: token ids to text.
        before: a prompt, or a prompt and whole steps.
        tokens: written after it.
    """
    head, whole = decode(before), decode(before + tokens)
    return whole[num_common(head, whole) :]


def num_common(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many items two sequences of one type have in common at their start."""
    if left == right[: len(left)]:
        return len(left)
    pairs = zip(left, right, strict=False)
    shorter = min(len(left), len(right))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
