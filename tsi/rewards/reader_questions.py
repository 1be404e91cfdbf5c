"""Questions for a reward model with its own tokenizer."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Integer

from tsi.decoding.step_texts import num_common
from tsi.errors import PromptTooLongError
from tsi.models.buckets import bucket_size
from tsi.rewards.formats import Format

TEXT_UNIT, TOKEN_UNIT = 64, 16
"""The smallest widths of questions; see :func:`tsi.models.buckets.bucket_size`."""


class Questions(NamedTuple):
    """P questions, and their tokens for the model.

    Attributes:
        text: ``[P, B]`` bytes of UTF-8, padded; ``sizes`` of them belong to the text.
        tokens: ``[P, S]`` ids with which renderings begin, padded; ``lengths`` of them
            count.
    """

    text: Int[Array, "P B"]
    sizes: Int[Array, " P"]
    tokens: Int[Array, "P S"]
    lengths: Int[Array, " P"]


def encode_questions(
    format: Format, questions: Sequence[str], max_tokens: int
) -> Questions:
    """Encode P questions.

    Args:
        format: how a solution is rendered for the model.
        questions: texts.
        max_tokens: the longest rendering that is read.

    Raises:
        PromptTooLongError: a question leaves no room for a solution.
    """
    heads = [_head(format, question) for question in questions]
    for question, head in zip(questions, heads, strict=True):
        if len(head) >= max_tokens:
            raise PromptTooLongError(
                f"The question {question[:60]!r} has {len(head)} tokens of the reward "
                f"model, and max_tokens={max_tokens} leaves no room for a solution. "
                "Shorten the question or raise max_tokens."
            )
    texts = [list(question.encode("utf-8")) for question in questions]
    text, sizes = _pad(texts, TEXT_UNIT, np.uint8)
    tokens, lengths = _pad(heads, TOKEN_UNIT, np.int32)
    return Questions(*map(jnp.asarray, (text, sizes, tokens, lengths)))


def _head(format: Format, question: str) -> list[int]:
    """Ids with which renderings of a question begin.

    They may be wrong, since reading compares them with each rendering.
    """
    empty, full = (
        format.render(question, [step], False).tokens for step in ("", question)
    )
    return empty[: num_common(empty, full)]


def _pad(
    rows: Sequence[list[int]], unit: int, dtype: DTypeLike
) -> tuple[Integer[np.ndarray, "P width"], Int[np.ndarray, " P"]]:
    width = bucket_size(max((len(row) for row in rows), default=1), unit)
    padded = np.zeros((len(rows), width), dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded, np.asarray([len(row) for row in rows], np.int32)
