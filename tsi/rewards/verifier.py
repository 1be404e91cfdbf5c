"""A reward that is a Python function of the question and the solution.

:class:`tsi.rewards.text_reward.TextReward` scores a solution without its question. A
checker that decides whether the steps follow from the question needs both. Questions
are stored as bytes in the reward's state, so that one compiled program serves all
problems.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.decoding.step_texts import text_so_far
from tsi.errors import ConfigurationError
from tsi.models.buckets import bucket_size
from tsi.rewards.host_reward import HostReward, Prefix, check_scores
from tsi.rewards.reward import Prompts
from tsi.rewards.reward_scale import check_scale, log_odds_of
from tsi.weights import weight_dtype

QUESTION_UNIT = 64
"""The smallest width of questions, in bytes; see `tsi.models.buckets.bucket_size`."""


class QuestionBytes(NamedTuple):
    """P questions as arrays of a compiled program.

    Attributes:
        text: ``[P, B]`` bytes of UTF-8, padded; ``sizes`` of them belong to the text.
        lengths: ``[P]``, number of tokens that are read per prompt: zero.
    """

    text: Int[Array, "P B"]
    sizes: Int[Array, " P"]
    lengths: Int[Array, " P"]


@dataclasses.dataclass(frozen=True)
class Verifier(HostReward):
    """A function of the question and the solution so far.

    Attributes:
        check: ``(question, text, ended) -> number``, where ``ended`` says whether the
            policy has ended the solution. It runs on the host and must be
            deterministic; the text is untrusted.
        decode: maps a list of token ids to text.
        scale, floor: scale and floor of the result of ``check``, as in `TextReward`.

    Raises:
        UnknownNameError: there is no such scale.
        ConfigurationError: the floor is not a probability, or the scale is log-odds.
    """

    check: Callable[[str, str, bool], float]
    decode: Callable[[list[int]], str]
    scale: str = "log-odds"
    floor: float | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale, self.floor)

    def prepare(self, questions: Sequence[str]) -> QuestionBytes:
        """The questions' bytes."""
        encoded = [question.encode("utf-8") for question in questions]
        sizes = np.asarray([len(text) for text in encoded], np.int32)
        width = bucket_size(max([1, *map(len, encoded)]), QUESTION_UNIT)
        padded = np.zeros((len(encoded), width), np.uint8)
        for row, text in zip(padded, encoded, strict=True):
            row[: len(text)] = list(text)
        lengths = np.zeros(len(encoded), np.int32)
        return QuestionBytes(*map(jnp.asarray, (padded, sizes, lengths)))

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Any
    ) -> QuestionBytes:
        """The initial state: the questions.

        Raises:
            ConfigurationError: the prompts were not prepared.
        """
        if prompts.questions is None:
            raise ConfigurationError(
                "A verifier reads the questions' text: give Prompts the result of its "
                "`prepare`, as tsi.Engine does."
            )
        return prompts.questions

    def score_rows(self, rows: Sequence[Prefix]) -> Float[np.ndarray, " R"]:
        """See :class:`tsi.rewards.host_reward.HostReward`."""
        scores = []
        for row in rows:
            question = bytes(row.question.text[: row.question.sizes]).decode("utf-8")
            text = text_so_far(self.decode, row.tokens, finished=row.finished)
            scores.append(self.check(question, text, row.stopped))
        numbers = check_scores(scores, len(scores))
        return log_odds_of(numbers, self.scale, self.floor, weight_dtype())
