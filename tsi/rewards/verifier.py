"""An exact checker as a reward: it is told the question, and runs on the host.

:class:`tsi.rewards.text_reward.TextReward` scores a text alone; what a checker knows,
whether the steps follow from this question, needs both. Questions travel as bytes in
the state, so that one compiled program serves all problems.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tsi.decoding.step_texts import text_so_far
from tsi.errors import ConfigurationError
from tsi.rewards.host_reward import HostReward, Written, numbers_of
from tsi.rewards.reward import Prompts
from tsi.rewards.reward_scale import check_scale, log_odds_of
from tsi.weights import weight_dtype

QUESTION_BUCKET = 64
"""Questions are padded to multiples of so many bytes, for few compiled shapes."""


class AskedQuestions(NamedTuple):
    """P questions, in the form in which a compiled program can carry them.

    Attributes:
        text: ``[P, B]`` bytes of UTF-8, of which ``sizes`` are real.
        lengths: ``[P]``, the tokens that are read of each prompt: none.
    """

    text: Int[Array, "P B"]
    sizes: Int[Array, " P"]
    lengths: Int[Array, " P"]


@dataclasses.dataclass(frozen=True)
class Verifier(HostReward):
    """A function of the question and the solution so far.

    Attributes:
        check: ``(question, text, ended) -> number``, where ``ended`` says that the
            policy has ended the solution; runs on the host, must be deterministic, and
            sees untrusted text.
        decode: maps a list of token ids to text.
        scale, floor: what ``check`` hands out, as in `TextReward`.

    Raises:
        UnknownNameError: for another scale.
        ConfigurationError: for a floor that is no probability, or one of log-odds.
    """

    check: Callable[[str, str, bool], float]
    decode: Callable[[list[int]], str]
    scale: str = "log-odds"
    floor: float | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale, self.floor)

    def prepare(self, questions: Sequence[str]) -> AskedQuestions:
        """The questions' bytes."""
        encoded = [question.encode("utf-8") for question in questions]
        sizes = np.asarray([len(text) for text in encoded], np.int32)
        longest = max([1, *map(len, encoded)])
        width = -(-longest // QUESTION_BUCKET) * QUESTION_BUCKET
        padded = np.zeros((len(encoded), width), np.uint8)
        for row, text in zip(padded, encoded, strict=True):
            row[: len(text)] = list(text)
        none = np.zeros(len(encoded), np.int32)
        return AskedQuestions(*map(jnp.asarray, (padded, sizes, none)))

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Any
    ) -> AskedQuestions:
        """Keep the questions.

        Raises:
            ConfigurationError: the prompts were not prepared.
        """
        if prompts.reward is None:
            raise ConfigurationError(
                "A verifier reads the questions' text: give Prompts the result of its "
                "`prepare`, as tsi.Engine does."
            )
        return prompts.reward

    def score_rows(self, rows: Sequence[Written]) -> Float[np.ndarray, " R"]:
        """See :class:`tsi.rewards.host_reward.HostReward`."""
        told = []
        for row in rows:
            question = bytes(row.asked.text[: row.asked.sizes]).decode("utf-8")
            text = text_so_far(self.decode, row.tokens, finished=row.finished)
            told.append(self.check(question, text, row.stopped))
        numbers = numbers_of(told, len(told))
        return log_odds_of(numbers, self.scale, self.floor, weight_dtype())
