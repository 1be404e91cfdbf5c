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
from typing import Any

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
