r"""Rewards without a reward model: the policy's confidence in the text that it wrote.

While the policy writes, its decoder records one number c_j at each token
(:mod:`tsi.decoding.token_confidence`). The score s of a prefix of n tokens is a mean of
these numbers,

    all tokens   s = mean of c_1 ... c_n
    last W       s = mean of the last W of them                  (tail)
    worst W      s = min of the means of all windows of W tokens (lowest group)

and of all n tokens if n < W. The log-odds are slope * f(s) + offset, where f is the
identity on the scale "raw", and on the scale "probability"

    r = exp(s)       for log-prob and negative-entropy, where s <= 0,
    r = s / (1 + s)  for self-certainty and top-k, where s >= 0,

f(s) = logit(r). The first r is the geometric mean of the tokens' probabilities, or the
inverse perplexity of the next-token distributions. The second r has odds s, so that
odds-weighted votes are the confidence-weighted votes of [2]. A score of exactly 0 is
replaced by a score at distance 2^-24, so that no log-odds are infinite.

No tokens are read, so the number of reward tokens is 0. The prompt does not count;
every token of the solution does, including forced ones.

References:
    [1] Kang, Zhao and Song 2025, arXiv 2502.18581 (the mean self-certainty of a text).
    [2] Fu, Wang, Tian and Zhao 2025, arXiv 2508.15260 (tail and lowest group).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.decoding.token_confidence import TokenConfidence
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.numeric_arguments import check_numbers
from tsi.rewards.reward import PolicyTokens, Prompts, Reading, Step
from tsi.weights import weight_dtype

WINDOWS = ("all", "last", "worst")
SCALES = ("probability", "raw")
SMALLEST = 2.0**-24
"""Smallest distance of a score from 0 on the scale "probability"."""


@dataclasses.dataclass(frozen=True)
class PolicyConfidence(PolicyTokens):
    """The policy's confidence in a prefix; its state is c of every token, ``[R, T]``.

    Attributes:
        confidence: the function that gives c.
        max_tokens: T, the target's token limit.
        window: which tokens count: "all", "last" or "worst".
        size: W, tokens of the window; not used for "all".
        scale: "probability" or "raw".
        slope: factor of f(s), positive.
        offset: added to the log-odds.

    Raises:
        UnknownNameError: there is no such window or scale.
        ConfigurationError: an argument is not a number, W is below 1, the slope is not
            positive and finite, or the offset is not finite.
    """

    confidence: TokenConfidence
    max_tokens: int
    window: str = "all"
    size: int = 1
    scale: str = "probability"
    slope: float = 1.0
    offset: float = 0.0

    reads_prompts = False

    def __post_init__(self) -> None:
        if self.window not in WINDOWS:
            raise UnknownNameError("window of confidence", self.window, WINDOWS)
        if self.scale not in SCALES:
            raise UnknownNameError("scale of confidence", self.scale, SCALES)
        check_numbers(
            "The reward of confidence",
            max_tokens=self.max_tokens,
            size=self.size,
            slope=self.slope,
            offset=self.offset,
        )
        if self.size < 1:
            raise ConfigurationError(
                f"A window of {self.size} tokens has no mean. Give at least 1."
            )
        if not 0.0 < self.slope < math.inf:
            raise ConfigurationError(
                f"The slope of confidence is {self.slope}, so log-odds would not rise "
                "with it. Give a positive number."
            )
        if not math.isfinite(self.offset):
            raise ConfigurationError(
                f"The offset of confidence is {self.offset}. Give a finite number."
            )

    @property
    def token_confidence(self) -> TokenConfidence:
        return self.confidence

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Any
    ) -> Float[Array, "R T"]:
        return jnp.zeros((rows, self.max_tokens), weight_dtype())

    def read(
        self, state: Float[Array, "R T"], step: Step, params: Any
    ) -> tuple[Float[Array, "R T"], Reading]:
        assert step.confidences is not None  # recorded, since there is a function
        slots = jnp.arange(state.shape[1]) - step.start[:, None]
        is_new = (slots >= 0) & (slots < step.counts[:, None])
        at = jnp.clip(slots, 0, step.confidences.shape[1] - 1)
        new = jnp.take_along_axis(step.confidences, at, axis=1)
        state = jnp.where(is_new, new, state)
        score = self.score(state, step.start + step.counts)
        return state, Reading(self.log_odds(score), jnp.zeros_like(step.counts))

    def score(
        self, confidences: Float[Array, "R T"], lengths: Int[Array, " R"]
    ) -> Float[Array, " R"]:
        """The score s of each prefix; 0 for an empty prefix.

        Args:
            confidences: c of the tokens of each row; only the first ``lengths`` count.
            lengths: number of tokens of each row.
        """
        places, size = jnp.arange(confidences.shape[1]), self.size
        lengths = lengths[:, None]
        inside = places < lengths
        values = jnp.where(inside, confidences, 0.0)
        if self.window == "last":
            inside &= places >= lengths - size
        mean = jnp.sum(values, axis=1, where=inside)
        mean = mean / jnp.maximum(jnp.sum(inside, axis=1), 1)
        if self.window != "worst":
            return mean
        whole = places + size <= lengths
        means = jnp.where(whole, window_sums(values, size) / size, jnp.inf)
        return jnp.where(lengths[:, 0] < size, mean, jnp.min(means, axis=1))

    def log_odds(self, score: Float[Array, " R"]) -> Float[Array, " R"]:
        """Log-odds of scores."""
        if self.scale == "probability":
            if self.confidence.measure in ("log-prob", "negative-entropy"):
                s = jnp.minimum(score, -SMALLEST)
                score = s - jnp.log(-jnp.expm1(s))
            else:
                score = jnp.log(jnp.maximum(score, SMALLEST))
        return self.slope * score + self.offset

    def fork(
        self, state: Float[Array, "R T"], ancestors: Int[Array, " R"]
    ) -> Float[Array, "R T"]:
        return state[ancestors]

    def take(
        self, state: Float[Array, "M T"], rows: Int[Array, " W"]
    ) -> Float[Array, "W T"]:
        return state[rows]

    def keep(
        self,
        stored: Float[Array, "M T"],
        slots: Int[Array, " W"],
        rows: Float[Array, "W T"],
    ) -> Float[Array, "M T"]:
        return stored.at[slots].set(rows, mode="drop")

    def cut(
        self, state: Float[Array, "R T"], lengths: Int[Array, " R"]
    ) -> Float[Array, "R T"]:
        # Only the first ``lengths`` tokens of a row count; later ones are overwritten.
        return state

    def reader(self, params: Any) -> None:
        return None


def window_sums(values: Float[Array, "R T"], size: int) -> Float[Array, "R T"]:
    """Sums of `size` values from each position on; values after the last count as zero.

    Sums of 1, 2, 4, ... values are combined according to the binary digits of the size,
    since differences of cumulative sums lose digits in long texts.
    """

    def shift(array: Array, by: int) -> Array:
        by = min(by, array.shape[1])
        return jnp.pad(array[:, by:], ((0, 0), (0, by)))

    total, before, block, width = jnp.zeros_like(values), 0, values, 1
    while width <= size:
        if size & width:
            total, before = total + shift(block, before), before + width
        block, width = block + shift(block, width), 2 * width
    return total
