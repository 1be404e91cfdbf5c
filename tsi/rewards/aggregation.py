"""From the scores of steps to the score of a prefix: last, min, product, mean.

With step rewards r_k = sigmoid(l_k) of a prefix of K steps:

    last     r_K                 arXiv 2408.03314 (Snell et al.)
    min      min_k r_k           arXiv 2312.08935 (Math-Shepherd), 2305.20050
    product  prod_k r_k          arXiv 2305.20050 (Lightman et al.)
    mean     mean_k r_k          RLHFlow's prm_evaluate.py

All in and out as log-odds, and none of them formed as a difference of nearly equal
numbers: 1 - prod_k r_k is summed as sum_k (1 - r_k) prod_{j<k} r_j. The fifth way,
"model", is no aggregation: a format shows the model the whole prefix as one step
(:mod:`tsi.rewards.formatted`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.errors import UnknownNameError
from tsi.models.decoder_config import DecoderConfig
from tsi.rewards.reward import Prompts, Reading, Reward, Step
from tsi.weights import weight_dtype

AGGREGATIONS = ("last", "min", "product", "mean")


def aggregate(
    log_odds: Float[Array, "R M"], counts: Int[Array, " R"], how: str
) -> Float[Array, " R"]:
    """The log-odds of prefixes from those of their steps; 0 for a prefix without any.

    Args:
        log_odds: of each step; only the first ``counts`` of a row are looked at.
        counts: how many steps each row has.
        how: one of :data:`AGGREGATIONS`.

    Raises:
        UnknownNameError: there is no such way.
    """
    checked(how)
    real = jnp.arange(log_odds.shape[1]) < counts[:, None]
    log_odds = jnp.where(real, log_odds, 0.0)
    if how == "last":
        last = jnp.maximum(counts - 1, 0)[:, None]
        value = jnp.take_along_axis(log_odds, last, axis=1)[:, 0]
    elif how == "min":
        value = jnp.min(jnp.where(real, log_odds, jnp.inf), axis=1)
    else:
        good = jax.nn.log_sigmoid(log_odds)
        bad = jax.nn.log_sigmoid(-log_odds)
        if how == "mean":
            value = _log_sum(good, real) - _log_sum(bad, real)
        else:
            good = jnp.where(real, good, 0.0)
            before = jnp.cumsum(good, axis=1) - good
            value = jnp.sum(good, axis=1) - _log_sum(before + bad, real)
    return jnp.where(counts > 0, value, 0.0)


def checked(how: str, ways: tuple[str, ...] = AGGREGATIONS) -> str:
    """The name of a way to aggregate, if there is one of that name."""
    if how not in ways:
        raise UnknownNameError("way to aggregate step scores", how, ways)
    return how


def _log_sum(terms: Float[Array, "R M"], real: Array) -> Float[Array, " R"]:
    return jax.nn.logsumexp(jnp.where(real, terms, -jnp.inf), axis=1)


class ScoredSteps(NamedTuple):
    """A reward's state, and where each row's steps end and what they scored."""

    inner: Any
    ends: Int[Array, "R M"]
    scores: Float[Array, "R M"]


class Aggregated:
    """A reward of prefixes whose readings are taken for scores of their newest step.

    Args:
        reward: gives the score of each step, when it is the newest.
        how: one of :data:`AGGREGATIONS`.
        max_steps: M, the target's.

    Raises:
        UnknownNameError: there is no such way to aggregate.
    """

    def __init__(self, reward: Reward, how: str, max_steps: int) -> None:
        self.reward, self.how, self.max_steps = reward, checked(how), max_steps

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
        here, ends = with_step(state.ends, step)
        scores = jnp.where(here, reading.log_odds[:, None], state.scores)
        value = aggregate(scores, jnp.sum(ends > 0, axis=1), self.how)
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
        ends = within(state.ends, lengths)
        return ScoredSteps(self.reward.cut(state.inner, lengths), ends, state.scores)

    def reader(self, params: Any) -> DecoderConfig | None:
        return self.reward.reader(params)

    @property
    def positions_beyond(self) -> int:
        """See :class:`tsi.rewards.reward.SelfJudge`."""
        return getattr(self.reward, "positions_beyond", 0)

    @property
    def reads_prompts(self) -> bool:
        """See :class:`tsi.rewards.reward.Reward`."""
        return self.reward.reads_prompts

    @property
    def reads_ids(self) -> bool:
        """See :class:`tsi.rewards.reward.Reward`."""
        return self.reward.reads_ids


def with_step(ends: Int[Array, "R M"], step: Step) -> tuple[Array, Int[Array, "R M"]]:
    """Where a step stands in each row that took it, ``[R, M]``, and the ends with it.

    Args:
        ends: length of the solution after each step, 0 beyond the last.
        step: the new one.
    """
    taken = jnp.sum(ends > 0, axis=1)
    here = (jnp.arange(ends.shape[1]) == taken[:, None]) & (step.counts > 0)[:, None]
    return here, jnp.where(here, (step.start + step.counts)[:, None], ends)


def within(ends: Int[Array, "R M"], lengths: Int[Array, " R"]) -> Int[Array, "R M"]:
    """The ends of the steps that are left of a solution that is cut to a length."""
    return jnp.where(ends <= lengths[:, None], ends, 0)
