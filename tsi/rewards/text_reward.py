"""A reward that is a Python function of the text."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from tsi.decoding.step_texts import text_so_far
from tsi.rewards.host_reward import HostReward, Prefix, check_scores
from tsi.rewards.reward_scale import check_scale, log_odds_of
from tsi.weights import weight_dtype


@dataclasses.dataclass(frozen=True)
class TextReward(HostReward):
    """A Python function of the solution's text so far.

    Attributes:
        score: maps a list of texts to one number each. It runs on the host and must be
            deterministic: a text's number may not depend on the other texts. It gets
            the texts of the rows that have taken a step; these are untrusted.
        decode: maps a list of token ids to text.
        scale: what `score` returns, "log-odds" or a "probability". A probability of 1
            becomes log-odds of 16.64, and 0 becomes -inf; up to 1e-6 outside [0, 1] is
            rounding (:mod:`tsi.rewards.reward_scale`).
        floor: smaller probabilities are raised to this value; None keeps 0 impossible.

    Raises:
        UnknownNameError: there is no such scale.
        ConfigurationError: the floor is not a probability, or the scale is log-odds.
    """

    score: Callable[[Sequence[str]], np.ndarray]
    decode: Callable[[list[int]], str]
    scale: str = "log-odds"
    floor: float | None = None

    def __post_init__(self) -> None:
        check_scale(self.scale, self.floor)

    def score_rows(self, rows: Sequence[Prefix]) -> Float[np.ndarray, " R"]:
        """See :class:`tsi.rewards.host_reward.HostReward`."""
        texts = [
            text_so_far(self.decode, row.tokens, finished=row.finished) for row in rows
        ]
        numbers = check_scores(self.score(texts), len(texts))
        return log_odds_of(numbers, self.scale, self.floor, weight_dtype())
