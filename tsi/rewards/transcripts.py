"""What a reward model has read of a row, on the host: ids, what it said, and how far.

A transcript is a value that nobody changes, so that a fork, a stored prefix and a row
that was cut back each hold one, and what rows have in common is held once. It lags
behind its row by a step at most, and it may hold more than the row: the next rendering
is compared with it, whatever became of the row.

Beside that it holds what makes the next rendering cheap, the texts of steps and the
ids of texts that were encoded. They change no id.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tsi.decoding.step_texts import NOTHING, Decoded
from tsi.models.tokens.recall import Piece, recalling
from tsi.rewards.formats import Rendering
from tsi.rewards.text_reader import TextReader


class Transcript(NamedTuple):
    """Of one row.

    Attributes:
        tokens: ids that have been read.
        values: what the model said at each.
        shared: how many of them the row attends to in its problem's prompt.
        decoded: texts of its steps.
        pieces: texts that were encoded.
    """

    tokens: Int[np.ndarray, " L"]
    values: Float[np.ndarray, " L"]
    shared: int
    decoded: Decoded = NOTHING
    pieces: tuple[Piece, ...] = ()


class Continued(NamedTuple):
    """A transcript after a step.

    Attributes:
        transcript: its values after the first ``common`` are not known yet.
        common: how many ids stand as they were; the others are to be read.
        rendering: None if it has no room.
    """

    transcript: Transcript
    common: int
    rendering: Rendering | None


def begin_transcript(tokens: Int[np.ndarray, " L"]) -> Transcript:
    """Of a row that has read the ids with which its problem's renderings begin."""
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
) -> Continued:
    """Render a row that has taken a step.

    Args:
        reader: the reward.
        before: the row's transcript.
        question: of its problem.
        solution: the policy's tokens.
        ends: of its steps, 0 where there is none.
        stopped: whether the policy has ended it.
        finished: whether it has ended, by itself or at a limit.
    """
    steps, decoded = reader.steps(solution, ends, finished, before.decoded)
    with recalling(before.pieces) as recall:
        found = reader.format.render(question, steps, stopped)
    now = before._replace(decoded=decoded, pieces=tuple(recall.pieces))
    size = len(found.tokens)
    if size > reader.max_tokens:
        return Continued(now, len(before.tokens), None)
    common = reader.num_kept(found, before.tokens.tolist())
    values = np.zeros(size, np.float32)
    values[:common] = before.values[:common]
    tokens = np.asarray(found.tokens, np.int32)
    shared = min(before.shared, common)
    now = now._replace(tokens=tokens, values=values, shared=shared)
    return Continued(now, common, found)
