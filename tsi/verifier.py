"""An exact checker as a reward: it is told the question, and runs on the host.

:class:`tsi.rewards.TextReward` scores a text alone; what a checker knows, whether the
steps follow from this question, needs both. Questions travel as bytes in the state, so
that one compiled program serves all problems.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from tsi.errors import ConfigurationError
from tsi.reward_scale import check_scale, log_odds_of
from tsi.rewards import Reading, Stateless
from tsi.step_texts import text_so_far
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
class Verifier(Stateless):
    """A function of the question and the solution so far.

    Attributes:
        check: ``(question, text, ended) -> number``, where ``ended`` says that the
            policy has ended the solution; runs on the host, must be deterministic, and
            sees untrusted text.
        decode: maps a list of token ids to text.
        scale, floor: what ``check`` hands out, as in :class:`tsi.rewards.TextReward`.

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

    def init(self, prompts, rows, capacity, params) -> AskedQuestions:
        """Keep the questions.

        Raises:
            ConfigurationError: the prompts were not prepared.
        """
        if prompts.reward is None:
            raise ConfigurationError(
                "A verifier reads the questions' text: give Prompts the result of its "
                "`prepare`, as tsi.engine.Engine does."
            )
        return prompts.reward

    def read(self, state: AskedQuestions, step, params) -> tuple[Any, Reading]:
        """See :class:`tsi.rewards.Reward`; rows that took no step are not checked."""
        log_odds = jax.pure_callback(
            functools.partial(self._on_host, weight_dtype()),
            jax.ShapeDtypeStruct(step.counts.shape, weight_dtype()),
            state.text,
            state.sizes,
            step.solution,
            step.start + step.counts,
            step.counts > 0,
            step.stopped,
            step.finished,
            vmap_method="sequential",
        )
        return state, Reading(log_odds, jnp.zeros_like(step.counts))

    def _on_host(self, dtype: Any, *arrays) -> np.ndarray:
        text, sizes, solution, lengths, live, ended, finished = map(np.asarray, arrays)
        told = np.zeros(len(lengths), np.float64)
        for row in np.flatnonzero(live):
            # Rows stand problem by problem.
            problem = row * len(text) // len(lengths)
            question = bytes(text[problem, : sizes[problem]]).decode("utf-8")
            tokens = solution[row, : lengths[row]].tolist()
            written = text_so_far(self.decode, tokens, finished=bool(finished[row]))
            told[row] = self.check(question, written, bool(ended[row]))
        return log_odds_of(told, self.scale, self.floor, dtype)

    def reader(self, params) -> None:
        """No model reads."""
        return None
