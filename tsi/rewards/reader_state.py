"""What :class:`tsi.rewards.text_reader.TextReader` keeps for each row."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.decoding.cache import Suffix
from tsi.models.attention import Segment
from tsi.rewards.reader_questions import Questions

BY_ROW = ("shared", "tokens", "lengths", "values", "ends")
"""The fields of a `ReaderState` that have an axis of rows, without its cache."""


class ReaderState(NamedTuple):
    """The ids of each row that the model has read, and their caches.

    Attributes:
        questions, prompt: questions and prompt caches of the problems, shared by their
            rows.
        shared: ``[R]``, number of the prompt's tokens that the row attends to.
        suffix: keys and values of the tokens after them.
        tokens: ``[R, L]``, all ids that have been read: the first ``lengths``.
        values: ``[R, L]``, the model's output at each id.
        ends: ``[R, M]``, the length of the policy's solution after each step.
    """

    questions: Questions
    prompt: Segment
    shared: Int[Array, " R"]
    suffix: Suffix
    tokens: Int[Array, "R L"]
    lengths: Int[Array, " R"]
    values: Float[Array, "R L"]
    ends: Int[Array, "R M"]


class RenderedRows(NamedTuple):
    """Renderings of R rows, padded.

    Attributes:
        tokens, lengths: ids of each row.
        common: number of its first ids that are in the cache already.
        marks: indices at which scores are read.
        num_marks: number of marks; -1 for a rendering that is too long.
    """

    tokens: Int[Array, "R L"]
    lengths: Int[Array, " R"]
    common: Int[Array, " R"]
    marks: Int[Array, "R K"]
    num_marks: Int[Array, " R"]


def with_rows(
    state: ReaderState, rows: Int[Array, " W"], suffix: Suffix
) -> ReaderState:
    """The state of W rows, whose caches are given."""
    fields = {name: getattr(state, name)[rows] for name in BY_ROW}
    return state._replace(suffix=suffix, **fields)


def write_rows(
    stored: ReaderState, slots: Int[Array, " W"], rows: ReaderState, suffix: Suffix
) -> ReaderState:
    """The stored state with W rows written at ``slots``; its caches are given."""
    new = {
        name: getattr(stored, name).at[slots].set(getattr(rows, name), mode="drop")
        for name in BY_ROW
    }
    return stored._replace(suffix=suffix, **new)


def mask_prompt(prompt: Segment, shared: Int[Array, " R"]) -> Segment:
    """A prompt, masked to the first ``shared`` tokens of each row."""
    places = jnp.arange(prompt.mask.shape[1])
    return prompt._replace(mask=places < shared[:, None])
