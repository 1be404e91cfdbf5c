"""From the scores of steps to the score of a prefix: last, min, product, mean.

With step rewards r_k = sigmoid(l_k) of a prefix of K steps:

    last     r_K                 arXiv 2408.03314 (Snell et al.)
    min      min_k r_k           arXiv 2312.08935 (Math-Shepherd), 2305.20050
    product  prod_k r_k          arXiv 2305.20050 (Lightman et al.)
    mean     mean_k r_k          RLHFlow's prm_evaluate.py

Scores and results are log-odds. None is computed as a difference of nearly equal
numbers: 1 - prod_k r_k is computed as sum_k (1 - r_k) prod_{j<k} r_j. A fifth option,
"model", needs no aggregation: the whole prefix is rendered for the model as one step
(:mod:`tsi.rewards.formatted`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.decoding.token_confidence import TokenConfidence
from tsi.errors import UnknownNameError
from tsi.models.decoder_config import DecoderConfig
from tsi.numeric_arguments import check_numbers
from tsi.rewards.reward import Prompts, Reading, Reward, Step
from tsi.weights import weight_dtype

AGGREGATIONS = ("last", "min", "product", "mean")


def aggregate(
    log_odds: Float[Array, "R M"], counts: Int[Array, " R"], aggregation: str
) -> Float[Array, " R"]:
    """The log-odds of prefixes from those of their steps; 0 for an empty prefix.

    Args:
        log_odds: log-odds of each step; only the first ``counts`` of a row are used.
        counts: number of steps of each row.
        aggregation: one of :data:`AGGREGATIONS`.

    Raises:
        UnknownNameError: there is no such aggregation.
    """
    check_aggregation(aggregation)
    mask = jnp.arange(log_odds.shape[1]) < counts[:, None]
    log_odds = jnp.where(mask, log_odds, 0.0)
    if aggregation == "last":
        last = jnp.maximum(counts - 1, 0)[:, None]
        value = jnp.take_along_axis(log_odds, last, axis=1)[:, 0]
    elif aggregation == "min":
        value = jnp.min(jnp.where(mask, log_odds, jnp.inf), axis=1)
    else:
        log_r = jax.nn.log_sigmoid(log_odds)
        log_not_r = jax.nn.log_sigmoid(-log_odds)
        if aggregation == "mean":
            value = _log_sum(log_r, mask) - _log_sum(log_not_r, mask)
        else:
            log_r = jnp.where(mask, log_r, 0.0)
            before = jnp.cumsum(log_r, axis=1) - log_r
            value = jnp.sum(log_r, axis=1) - _log_sum(before + log_not_r, mask)
    return jnp.where(counts > 0, value, 0.0)


def check_aggregation(aggregation: str, names: tuple[str, ...] = AGGREGATIONS) -> None:
    """Refuse a name that is not one of the aggregations.

    Raises:
        UnknownNameError: there is no such aggregation.
    """
    if aggregation not in names:
        raise UnknownNameError("aggregation of step scores", aggregation, names)


def _log_sum(
    terms: Float[Array, "R M"], mask: Bool[Array, "R M"]
) -> Float[Array, " R"]:
    return jax.nn.logsumexp(jnp.where(mask, terms, -jnp.inf), axis=1)


class ScoredSteps(NamedTuple):
    """A reward's state, and the ends and scores of each row's steps."""

    inner: Any
    ends: Int[Array, "R M"]
    scores: Float[Array, "R M"]


class Aggregated:
    """A reward of prefixes, aggregated from another reward's scores of their steps.

    Args:
        reward: its log-odds of a prefix are the score of the prefix's newest step.
        aggregation: one of :data:`AGGREGATIONS`.
        max_steps: M, the target's step limit.

    Raises:
        UnknownNameError: there is no such aggregation.
        ConfigurationError: `max_steps` is not a number.
    """

    def __init__(self, reward: Reward, aggregation: str, max_steps: int) -> None:
        check_aggregation(aggregation)
        check_numbers("An aggregation of rewards", max_steps=max_steps)
        self.reward, self.aggregation, self.max_steps = reward, aggregation, max_steps

    def prepare(self, questions: Sequence[str]) -> Any:
        """See :class:`tsi.rewards.reward.Reward`."""
        return self.reward.prepare(questions)

    def init(
        self, prompts: Prompts, rows: int, capacity: int, params: Any
    ) -> ScoredSteps:
        inner = self.reward.init(prompts, rows, capacity, params)
        ends = jnp.zeros((rows, self.max_steps), jnp.int32)
        return ScoredSteps(inner, ends, ends.astype(weight_dtype()))

    def read(
        self, state: ScoredSteps, step: Step, params: Any
    ) -> tuple[ScoredSteps, Reading]:
        inner, reading = self.reward.read(state.inner, step, params)
        is_end, ends = append_end(state.ends, step)
        scores = jnp.where(is_end, reading.log_odds[:, None], state.scores)
        value = aggregate(scores, jnp.sum(ends > 0, axis=1), self.aggregation)
        reading = Reading(value, *reading[1:])
        return ScoredSteps(inner, ends, scores), reading

    def fork(self, state: ScoredSteps, ancestors: Int[Array, " R"]) -> ScoredSteps:
        inner = self.reward.fork(state.inner, ancestors)
        return ScoredSteps(inner, state.ends[ancestors], state.scores[ancestors])

    def take(self, state: ScoredSteps, rows: Int[Array, " W"]) -> ScoredSteps:
        inner = self.reward.take(state.inner, rows)
        return ScoredSteps(inner, state.ends[rows], state.scores[rows])

    def keep(
        self, stored: ScoredSteps, slots: Int[Array, " W"], rows: ScoredSteps
    ) -> ScoredSteps:
        return ScoredSteps(
            self.reward.keep(stored.inner, slots, rows.inner),
            stored.ends.at[slots].set(rows.ends, mode="drop"),
            stored.scores.at[slots].set(rows.scores, mode="drop"),
        )

    def cut(self, state: ScoredSteps, lengths: Int[Array, " R"]) -> ScoredSteps:
        ends = cut_ends(state.ends, lengths)
        return ScoredSteps(self.reward.cut(state.inner, lengths), ends, state.scores)

    def reader(self, params: Any) -> DecoderConfig | None:
        return self.reward.reader(params)

    @property
    def positions_beyond(self) -> int:
        """See :class:`tsi.rewards.self_judge.SelfJudge`."""
        return getattr(self.reward, "positions_beyond", 0)

    @property
    def reads_prompts(self) -> bool:
        """See :class:`tsi.rewards.reward.Reward`."""
        return self.reward.reads_prompts

    @property
    def reads_ids(self) -> bool:
        """See :class:`tsi.rewards.reward.Reward`."""
        return self.reward.reads_ids

    @property
    def token_confidence(self) -> TokenConfidence | None:
        """See :class:`tsi.rewards.reward.Reward`."""
        return self.reward.token_confidence


def append_end(ends: Int[Array, "R M"], step: Step) -> tuple[Array, Int[Array, "R M"]]:
    """Append a step's end; also return a mask of its index in each row that took it.

    Args:
        ends: length of the solution after each step, 0 beyond the last.
        step: the new step.

    Returns:
        The mask ``[R, M]``, and the ends with the new one.
    """
    num_ends = jnp.sum(ends > 0, axis=1)
    is_end = (jnp.arange(ends.shape[1]) == num_ends[:, None]) & (step.counts > 0)[
        :, None
    ]
    return is_end, jnp.where(is_end, (step.start + step.counts)[:, None], ends)


def cut_ends(ends: Int[Array, "R M"], lengths: Int[Array, " R"]) -> Int[Array, "R M"]:
    """The ends of the steps that remain when solutions are cut to these lengths."""
    return jnp.where(ends <= lengths[:, None], ends, 0)
