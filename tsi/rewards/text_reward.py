"""A Python function of the text as a reward."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from tsi.decoding.step_texts import text_so_far
from tsi.rewards.host_reward import HostReward, Written, numbers_of
from tsi.rewards.reward_scale import check_scale, log_odds_of
from tsi.weights import weight_dtype


@dataclasses.dataclass(frozen=True)
class TextReward(HostReward):
    """A Python function of the solution's text so far.

    Attributes:
        score: maps texts to as many numbers; runs on the host, must be deterministic
            and give a text the same number in any company, and sees untrusted text:
            that of the rows that have taken a step.
        decode: maps a list of token ids to text.
        scale: what `score` hands out, "log-odds" or a "probability", of which 1 is the
            log-odds 16.64 and 0 is -inf (:mod:`tsi.rewards.reward_scale`).
        floor: the least probability that counts, in place of -inf for 0.

    Raises:
        UnknownNameError: for another scale.
        ConfigurationError: for a floor that is no probability, or one of log-odds.
    """

    score: Callable[[Sequence[str]], np.ndarray]
    decode: Callable[[list[int]], str]
    scale: str = "log-odds"
    floor: float | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale, self.floor)

    def score_rows(self, rows: Sequence[Written]) -> Float[np.ndarray, " R"]:
        """See :class:`tsi.rewards.host_reward.HostReward`."""
        texts = [
            text_so_far(self.decode, row.tokens, finished=row.finished) for row in rows
        ]
        numbers = numbers_of(self.score(texts), len(texts))
        return log_odds_of(numbers, self.scale, self.floor, weight_dtype())
