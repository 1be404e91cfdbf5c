"""Transcripts: host-side records of the ids that a reward model has read.

A transcript is immutable, so forks, stored prefixes and rows that were cut back can
share one. It may be a step behind its row, and after a cut it may be longer than its
row. Both are safe, since the next rendering is always compared with it.

A transcript also contains the texts of steps and the ids of encoded texts. They make
the next rendering cheaper and do not change its ids.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tsi.decoding.step_texts import NO_TEXT, Decoded
from tsi.models.tokens.recall import Piece, use_recall
from tsi.rewards.formats import Rendering
from tsi.rewards.text_reader import TextReader


class Transcript(NamedTuple):
    """A record of the ids of one row that a reward model has read.

    Attributes:
        tokens: ids that have been read.
        values: the model's output at each id.
        shared: number of the problem's prompt tokens that the row attends to.
        decoded: texts of the row's steps.
        pieces: texts that were encoded, with their ids.
    """

    tokens: Int[np.ndarray, " L"]
    values: Float[np.ndarray, " L"]
    shared: int
    decoded: Decoded = NO_TEXT
    pieces: tuple[Piece, ...] = ()


class Continuation(NamedTuple):
    """A transcript after a step.

    Attributes:
        transcript: the new transcript; only its first ``common`` values are known yet.
        common: number of first ids that are unchanged; the others must be read.
        rendering: the rendering; None if it is too long.
    """

    transcript: Transcript
    common: int
    rendering: Rendering | None


def begin_transcript(tokens: Int[np.ndarray, " L"]) -> Transcript:
    """The transcript of a row before its first step: only the prompt has been read."""
    return Transcript(tokens, np.zeros(len(tokens), np.float32), len(tokens))


def continue_transcript(
    reader: TextReader,
    before: Transcript,
    question: str,
    solution: Int[np.ndarray, " T"],
    ends: Int[np.ndarray, " M"],
    *,
    stopped: bool,
    finished: bool,
) -> Continuation:
    """Render a row that has taken a step.

    Args:
        reader: the reward.
        before: the row's transcript.
        question: question of the row's problem.
        solution: the policy's tokens.
        ends: length after each of the row's steps; 0 beyond the last step.
        stopped: whether the policy has ended the solution.
        finished: whether the solution has ended, by itself or at a limit.
    """
    steps, decoded = reader.steps(solution, ends, finished, before.decoded)
    with use_recall(before.pieces) as recall:
        rendering = reader.format.render(question, steps, stopped)
    now = before._replace(decoded=decoded, pieces=tuple(recall.pieces))
    size = len(rendering.tokens)
    if size > reader.max_tokens:
        return Continuation(now, len(before.tokens), None)
    common = reader.num_ids_to_keep(rendering, before.tokens.tolist())
    values = np.zeros(size, np.float32)
    values[:common] = before.values[:common]
    tokens = np.asarray(rendering.tokens, np.int32)
    shared = min(before.shared, common)
    now = now._replace(tokens=tokens, values=values, shared=shared)
    return Continuation(now, common, rendering)
