"""A process reward model behind a server, in the format that it was published with.

The solution is rendered and encoded on this machine (:mod:`tsi.rewards.formats`), and
ids are sent, so that the text of a step never becomes a control token. The format
determines how scores are requested:

    a head that scores tokens (qwen, skywork)     vLLM's ``/pooling``; all marks at once
    a head that scores the whole (outcome)        vLLM's ``/classify``
    two tokens compared (math-shepherd, rlhflow)  a server that writes text: the two as
                                                  candidates for the next token

vLLM reads all tokens of a request to ``/pooling`` anew, since its prefix cache contains
no token scores. The other two requests reuse the prefix cache.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from tsi.errors import ServerError
from tsi.rewards.formats import Rendering
from tsi.rewards.formatted import FormattedReward
from tsi.serving.choice import Chooser
from tsi.serving.client import Client
from tsi.serving.dialect import Call
from tsi.serving.pooling import (
    classify_call,
    pooling_call,
    read_classify,
    read_pooling,
)
from tsi.serving.scorer import Score, ScoredRow
from tsi.serving.step_scores import StepScores, aggregate_scores

SMALLEST = 2.0**-24
"""Probabilities are clipped to this distance from 0 and 1."""


@runtime_checkable
class MarkScores(Protocol):
    """Computes the log-odds at the marks of a rendering."""

    async def read(
        self, problem: int, rendering: Rendering, *, last: bool
    ) -> tuple[list[float], int]:
        """Log-odds, and the tokens that were read for them.

        Args:
            problem: index of the problem.
            rendering: what the model reads.
            last: whether the last mark is enough.
        """


class PooledMarks:
    """Scores of a model with a head.

    Args:
        client: of the server.
        model: name of the server's model, or None.
        whole: whether the head scores the whole text instead of its tokens.
        probe: a few ids, which are scored once to see whether the server returns logits
            or probabilities.
    """

    def __init__(
        self, client: Client, model: str | None, whole: bool, probe: Sequence[int]
    ) -> None:
        self.client, self._model, self._whole = client, model, whole
        raw_scores, _ = client.call(self._ask(probe, False))
        squashed, _ = client.call(self._ask(probe, True))
        self._are_probabilities = is_probability(raw_scores, squashed)

    async def read(
        self, problem: int, rendering: Rendering, *, last: bool
    ) -> tuple[list[float], int]:
        """See :class:`MarkScores`."""
        del problem, last
        tokens, marks = rendering
        scores, read = await self._ask(tokens, False)
        if not self._whole and len(scores) == len(tokens):
            scores = scores[marks]
        # A server that is configured with the separator's id returns scores of the
        # marks only.
        if len(scores) != len(marks):
            raise ServerError(
                f"The reward server scored {len(scores)} tokens of a text of "
                f"{len(tokens)} tokens and {len(marks)} steps; it must score all "
                "tokens, or one per step."
            )
        return label_log_odds(scores, self._are_probabilities).tolist(), read

    async def _ask(
        self, tokens: Sequence[int], activation: bool
    ) -> tuple[Float[np.ndarray, "T K"], int]:
        make = classify_call if self._whole else pooling_call
        call: Call = make(tokens, self._model, activation=activation)
        request = self.client.submit(self.client.post(call.path, call.body))
        reply: Any = await asyncio.wrap_future(request)
        if self._whole:
            return read_classify(reply)
        return read_pooling(reply, len(tokens))


class ChosenMarks:
    """Scores of a language model that predicts one of two tokens after each step.

    Attributes:
        num_bounded: see :class:`tsi.serving.served_judge.ServedJudge`.

    Args:
        model: the language model.
        answers: ids of the tokens for good and bad.
    """

    def __init__(self, model: Chooser, answers: tuple[int, int]) -> None:
        self.model, self.answers, self.num_bounded = model, answers, 0
        self._scores = StepScores()

    async def read(
        self, problem: int, rendering: Rendering, *, last: bool
    ) -> tuple[list[float], int]:
        """See :class:`MarkScores`."""
        tokens, marks = rendering
        scores, read = [], 0
        for mark in marks[-1:] if last else marks:
            prefix = tuple(tokens[: mark + 1])
            score = self._scores.find(problem, prefix)
            if score is None:
                choice = await self.model.choose(prefix, self.answers)
                self.num_bounded += choice.bounded > 0
                score = choice.log_probs[0] - choice.log_probs[1]
                read += choice.tokens_read
                self._scores.keep(problem, prefix, score)
            scores.append(score)
        return scores, read


class ServedPrm:
    """A :class:`tsi.serving.scorer.ServedScorer`; see the module docstring.

    Args:
        marks: requests scores from the server.
        reward: renders texts and defines how step scores are aggregated; the server has
            its model.
        name: for rows of results.
        address: URL of the server, for rows of results; None if it is not known.
    """

    needs_log_probs = False

    def __init__(
        self,
        marks: MarkScores,
        reward: FormattedReward,
        name: str,
        address: str | None = None,
    ) -> None:
        self.marks, self.reward, self.name = marks, reward, name
        self.address = address
        self._questions: list[str] = []

    def prepare(self, questions: Sequence[str]) -> None:
        """See :class:`tsi.serving.scorer.ServedScorer`.

        Raises:
            PromptTooLongError: a question leaves no room for a solution.
        """
        self.reward.prepare(questions)
        self._questions = list(questions)

    async def ask(self, row: ScoredRow) -> Score:
        """See :class:`tsi.serving.scorer.ServedScorer`."""
        # In another thread, since rendering may wait for a request of this event loop.
        rendering = await asyncio.to_thread(self._render, row)
        if len(rendering.tokens) > self.reward.max_tokens:
            return Score(float("nan"))
        aggregation = self.reward.aggregation
        scores, read = await self.marks.read(
            row.problem, rendering, last=aggregation == "last"
        )
        return Score(aggregate_scores(scores, aggregation), read)

    def _render(self, row: ScoredRow) -> Rendering:
        tokens = np.asarray(row.tokens, np.int32)
        ends = np.asarray(row.ends, np.int32)
        steps, _ = self.reward.steps(tokens, ends, row.finished)
        question = self._questions[row.problem]
        return self.reward.format.render(question, steps, row.stopped)


def is_probability(
    raw_scores: Float[np.ndarray, "T K"], squashed: Float[np.ndarray, "T K"]
) -> bool:
    """Whether a server gives probabilities even if logits are requested.

    Args:
        raw_scores: of a text, requested without an activation.
        squashed: scores of the same text, requested with an activation. If they differ,
            the server follows the request.
    """
    if raw_scores.shape == squashed.shape and not np.allclose(
        raw_scores, squashed, atol=1e-6
    ):
        return False
    inside = bool(np.all((raw_scores >= 0) & (raw_scores <= 1)))
    sums = raw_scores.sum(axis=1)
    return inside and (
        raw_scores.shape[1] == 1 or bool(np.allclose(sums, 1, atol=1e-2))
    )


def label_log_odds(
    scores: Float[np.ndarray, "T K"], are_probabilities: bool
) -> Float[np.ndarray, " T"]:
    """Log-odds of one output, or of the classes bad and good.

    Args:
        scores: logits or probabilities.
        are_probabilities: True for probabilities, False for logits.
    """
    if are_probabilities:
        if scores.shape[1] == 1:
            scores = np.concatenate([1 - scores, scores], axis=1)
        scores = np.log(np.maximum(scores, SMALLEST))
    return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]
