"""Render rows that a server has written for a reward model on this machine."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.decoding.step_texts import num_common
from tsi.errors import PromptTooLongError
from tsi.rewards.formats import Rendering
from tsi.rewards.formatted import FormattedReward
from tsi.rewards.transcripts import (
    Continuation,
    Transcript,
    begin_transcript,
    continue_transcript,
)
from tsi.serving.scorer import ScoredRow


@runtime_checkable
class Renderer(Protocol):
    """Renders rows as ids of the reward model.

    Attributes:
        max_tokens: the longest rendering.
        aggregation: of the scores of steps.
    """

    max_tokens: int
    aggregation: str

    def prepare(self, questions: Sequence[str]) -> None:
        """Encode the questions of all problems.

        Raises:
            PromptTooLongError: a question leaves no room for a solution.
        """

    def begin(self, problem: int) -> Transcript:
        """The ids with which all renderings of a problem begin, without values."""

    def render(self, before: Transcript, row: ScoredRow) -> Continuation:
        """The ids of a row.

        Args:
            before: transcript of a prefix of the row, or any other transcript.
            row: the row to be read.
        """

    def values(
        self, model: Any, hidden: Float[Array, "R W D"], following: Int[Array, "R W"]
    ) -> Float[Array, "R W"]:
        """See :meth:`tsi.rewards.text_reader.TextReader.values`."""


class TextRenderer:
    """Renders texts in the format of a published reward model.

    Args:
        reward: the reward; its `decode` must be that of the served policy.
    """

    def __init__(self, reward: FormattedReward) -> None:
        self.reward = reward
        self.max_tokens, self.aggregation = reward.max_tokens, reward.aggregation
        self._questions: list[str] = []
        self._begun: list[Transcript] = []

    def prepare(self, questions: Sequence[str]) -> None:
        """See :class:`Renderer`."""
        self._questions = list(questions)
        prepared = jax.tree.map(np.asarray, self.reward.prepare(questions))
        self._begun = [
            begin_transcript(tokens[:length])
            for tokens, length in zip(prepared.tokens, prepared.lengths, strict=True)
        ]

    def begin(self, problem: int) -> Transcript:
        """See :class:`Renderer`."""
        return self._begun[problem]

    def render(self, before: Transcript, row: ScoredRow) -> Continuation:
        """See :class:`Renderer`."""
        return continue_transcript(
            self.reward,
            before,
            self._questions[row.problem],
            np.asarray(row.tokens, np.int32),
            np.asarray(row.ends, np.int32),
            stopped=row.stopped,
            finished=row.finished,
        )

    def values(
        self, model: Any, hidden: Float[Array, "R W D"], following: Int[Array, "R W"]
    ) -> Float[Array, "R W"]:
        """See :class:`Renderer`."""
        return self.reward.values(model, hidden, following)


class IdRenderer:
    """Renders the policy's own ids, for a token head with the same tokenizer.

    Args:
        encode: function from a problem's prompt to the ids that the policy reads.
        max_tokens: the maximum number of tokens of prompt and solution together.
        aggregation: of the scores of steps.
    """

    def __init__(self, encode: Any, max_tokens: int, aggregation: str) -> None:
        self._encode = encode
        self.max_tokens, self.aggregation = max_tokens, aggregation
        self._prompts: list[tuple[int, ...]] = []

    def prepare(self, questions: Sequence[str]) -> None:
        """See :class:`Renderer`."""
        self._prompts = [tuple(self._encode(question)) for question in questions]
        for question, prompt in zip(questions, self._prompts, strict=True):
            if len(prompt) >= self.max_tokens:
                raise PromptTooLongError(
                    f"The prompt {question[:60]!r} has {len(prompt)} tokens, and the "
                    f"reward model reads {self.max_tokens}. Shorten the prompt."
                )

    def begin(self, problem: int) -> Transcript:
        """See :class:`Renderer`."""
        return begin_transcript(np.asarray(self._prompts[problem], np.int32))

    def render(self, before: Transcript, row: ScoredRow) -> Continuation:
        """See :class:`Renderer`."""
        prompt = self._prompts[row.problem]
        tokens = [*prompt, *row.tokens]
        if len(tokens) > self.max_tokens:
            return Continuation(before, len(before.tokens), None)
        marks = [len(prompt) + end - 1 for end in row.ends]
        same = num_common(tokens, before.tokens.tolist())
        # At least one id is read again, since the newest score must come from this
        # pass.
        common = min(same, marks[-1])
        values = np.zeros(len(tokens), np.float32)
        values[:common] = before.values[:common]
        now = before._replace(tokens=np.asarray(tokens, np.int32), values=values)
        return Continuation(now, common, Rendering(tokens, marks))

    def values(
        self, model: Any, hidden: Float[Array, "R W D"], following: Int[Array, "R W"]
    ) -> Float[Array, "R W"]:
        """See :class:`Renderer`."""
        del following
        return model.log_odds(hidden)
