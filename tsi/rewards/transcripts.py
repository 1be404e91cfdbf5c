"""Transcripts: what a reward model has read of a row, on the host.

A transcript is immutable, so that forks, stored prefixes and rows that were cut back
share one. It may be a step behind its row, and after a cut it may be longer than its
row: the next rendering is compared with it in any case.

It also holds the texts of steps and the ids of encoded texts, which make the next
rendering cheaper and do not change its ids.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tsi.decoding.step_texts import NO_TEXT, Decoded
from tsi.models.tokens.recall import Piece, use_recall
from tsi.rewards.formats import Rendering
from tsi.rewards.text_reader import TextReader


class Transcript(NamedTuple):
    """What a reward model has read of one row.

    Attributes:
        tokens: ids that have been read.
        values: the model's output at each.
        shared: number of the problem's prompt tokens that the row attends to.
        decoded: texts of its steps.
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
        transcript: its values after the first ``common`` are not known yet.
        common: number of ids that are unchanged; the others have to be read.
        rendering: None if it is too long.
    """

    transcript: Transcript
    common: int
    rendering: Rendering | None


def begin_transcript(tokens: Int[np.ndarray, " L"]) -> Transcript:
    """The transcript of a row of which only the problem's prompt has been read."""
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
        question: of its problem.
        solution: the policy's tokens.
        ends: lengths after each of its steps, 0 where there is none.
        stopped: whether the policy has ended the solution.
        finished: whether it has ended, by itself or at a limit.
    """
    steps, decoded = reader.steps(solution, ends, finished, before.decoded)
    with use_recall(before.pieces) as recall:
        rendering = reader.format.render(question, steps, stopped)
    now = before._replace(decoded=decoded, pieces=tuple(recall.pieces))
    size = len(rendering.tokens)
    if size > reader.max_tokens:
        return Continuation(now, len(before.tokens), None)
    common = reader.num_kept(rendering, before.tokens.tolist())
    values = np.zeros(size, np.float32)
    values[:common] = before.values[:common]
    tokens = np.asarray(rendering.tokens, np.int32)
    shared = min(before.shared, common)
    now = now._replace(tokens=tokens, values=values, shared=shared)
    return Continuation(now, common, rendering)
