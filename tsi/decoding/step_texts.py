"""Texts of a solution and of its steps.

A token's text depends on its neighbours. SentencePiece tokenizers drop the space before
the first decoded word, so that steps decoded one by one lose the spaces between them. A
character of several bytes may be cut by the end of a step, which leaves a replacement
mark on either side. Therefore only prefixes of the whole solution are decoded, and a
step's text is the difference of two such texts. The texts of the steps, joined, are the
text of the solution.

While a solution continues, replacement marks at its end may be an incomplete character.
They are omitted, and the character belongs to the step that completes it. Rewards and
results both use these functions, so that they read the same text.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

Decode = Callable[[list[int]], str]

REPLACEMENT_MARK = "\ufffd"


def text_so_far(decode: Decode, tokens: list[int], *, finished: bool) -> str:
    """The text of a solution so far, without an incomplete character at its end.

    Args:
        decode: token ids to text.
        tokens: tokens of the solution, from the first on.
        finished: whether no token follows, so that incomplete characters are kept.
    """
    text = decode(tokens)
    return text if finished else text.rstrip(REPLACEMENT_MARK)


def texts_of_steps(
    decode: Decode, tokens: list[int], ends: Sequence[int], *, finished: bool
) -> list[str]:
    """The text of each step; joined, these are the text of the solution.

    Args:
        decode: token ids to text.
        tokens: of the solution; padding may follow.
        ends: increasing lengths in tokens after each step.
        finished: whether no token follows.
    """
    if not ends:
        return []
    whole = text_so_far(decode, tokens[: ends[-1]], finished=finished)
    before = (text_so_far(decode, tokens[:end], finished=False) for end in ends[:-1])
    # The decoder may change earlier text; no step may get a negative length.
    places = itertools.accumulate((num_common(text, whole) for text in before), max)
    cuts = [0, *places, len(whole)]
    return [whole[a:b] for a, b in itertools.pairwise(cuts)]


class Decoded(NamedTuple):
    """The text of a solution's first steps.

    Attributes:
        tokens: of the solution.
        ends: increasing lengths in tokens after each step.
        places: length in characters of the text after each step. Each of these texts is
            a prefix of the last one.
        text: the text after the last step, without an incomplete character.
    """

    tokens: Int[np.ndarray, " T"]
    ends: tuple[int, ...]
    places: tuple[int, ...]
    text: str


NO_TEXT = Decoded(np.zeros(0, np.int32), (), (), "")
"""The text of a solution without steps."""


def texts_of_more_steps(
    decode: Decode,
    before: Decoded,
    tokens: Int[np.ndarray, " T"],
    ends: Sequence[int],
    *,
    finished: bool,
) -> tuple[list[str], Decoded]:
    """As `texts_of_steps`, but reuses the texts of earlier steps.

    The whole solution is decoded once. Steps in ``before`` are not decoded again if the
    solution begins with their tokens and text.

    Args:
        decode: token ids to text.
        before: texts of this solution, or of another that may have the same first
            steps.
        tokens: of the solution; padding may follow.
        ends: increasing lengths in tokens after each step, at least one.
        finished: whether no token follows.
    """
    whole = text_so_far(decode, tokens[: ends[-1]].tolist(), finished=finished)
    num_known = num_common(before.ends, tuple(ends[:-1]))
    length, place = (x[num_known - 1] if num_known else 0 for x in before[1:3])
    if not (
        whole.startswith(before.text[:place])
        and np.array_equal(before.tokens[:length], tokens[:length])
    ):
        num_known = 0
    texts = [
        text_so_far(decode, tokens[:end].tolist(), finished=False)
        for end in ends[num_known:-1]
    ]
    common = [num_common(text, whole) for text in texts]
    places = itertools.accumulate([*before.places[:num_known], *common], max)
    cuts = [0, *places, len(whole)]
    steps = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    text = whole.rstrip(REPLACEMENT_MARK) if finished else whole
    sizes = [*before.places[:num_known], *map(len, texts), len(text)]
    if common != list(map(len, texts)) or sizes != sorted(sizes):
        # The decoder changed earlier text, so nothing is reused next time.
        return steps, NO_TEXT
    # A copy, since a view would keep the tokens of all rows of the batch in memory.
    return steps, Decoded(tokens[: ends[-1]].copy(), tuple(ends), tuple(sizes), text)


def text_after(decode: Decode, before: list[int], tokens: list[int]) -> str:
    """The text that tokens add to the text of the preceding tokens.

    Args:
        decode: token ids to text.
        before: a prompt, or a prompt and complete steps.
        tokens: the tokens after it.
    """
    head, whole = decode(before), decode(before + tokens)
    return whole[num_common(head, whole) :]


def num_common(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Length of the common prefix of two sequences of the same type."""
    if left == right[: len(left)]:
        return len(left)
    pairs = zip(left, right, strict=False)
    shorter = min(len(left), len(right))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
