"""The reward of prefixes that a server has written."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from tsi.errors import ConfigurationError
from tsi.rewards.aggregated_on_host import AggregatedOnHost
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.host_reward import HostReward, Prefix, score_each


class ScoredRow(NamedTuple):
    """A solution that has taken a step.

    Attributes:
        problem: index of the problem among the prepared questions.
        tokens: ids, or code points of text, of the solution so far.
        ends: length of the solution after each step.
        stopped: whether the policy has ended the solution.
        finished: whether the solution has ended, by itself or at a limit.
        log_prob: log p of the solution as the server reports it; NaN if not known.
    """

    problem: int
    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    stopped: bool
    finished: bool
    log_prob: float


class Score(NamedTuple):
    """The reward of a row.

    Attributes:
        log_odds: log-odds of the reward, used as the log potential.
        tokens_read: number of tokens that a model has read to compute it.
    """

    log_odds: float
    tokens_read: int = 0


@runtime_checkable
class Scorer(Protocol):
    """Scores rows on this machine, in the thread that runs the problems.

    Attributes:
        needs_log_probs: whether the scorer uses `ScoredRow.log_prob`, as log p of the
            model at temperature 1; a run in which it is another number is refused.
        name: for rows of results.
    """

    needs_log_probs: bool
    name: str

    def prepare(self, questions: Sequence[str]) -> None:
        """Prepare the questions of all problems, before the first row is scored."""

    def score(self, rows: Sequence[ScoredRow]) -> list[Score | Exception]:
        """The score of each row, or the error of those that cannot be scored."""


@runtime_checkable
class ServedScorer(Protocol):
    """Scores rows on a server, in the thread of its client; attributes as `Scorer`."""

    needs_log_probs: bool
    name: str

    def prepare(self, questions: Sequence[str]) -> None:
        """Prepare the questions of all problems, before the first row is scored."""

    async def ask(self, row: ScoredRow) -> Score:
        """The score of a row.

        Raises:
            ServerError: the server refuses, fails for too long, or answers nonsense.
        """


def check_scorer(scorer: object) -> None:
    """Refuse a reward that is not a scorer.

    Raises:
        ConfigurationError: see above.
    """
    if not isinstance(scorer, Scorer | ServedScorer):
        raise ConfigurationError(
            "The reward over a server must be a scorer, such as a HostScorer or what "
            f"tsi.serving.served_reward returns, not {type(scorer).__name__}."
        )


class NoScorer:
    """A reward of 0.5 for every prefix."""

    needs_log_probs = False
    name = "none"

    def prepare(self, questions: Sequence[str]) -> None:
        """See `Scorer`."""

    def score(self, rows: Sequence[ScoredRow]) -> list[Score | Exception]:
        """See `Scorer`."""
        return [Score(0.0)] * len(rows)


@dataclasses.dataclass
class HostScorer:
    """A Python function of the text so far, such as a verifier.

    Args:
        reward: such a function, or step scores of one that are aggregated; its `decode`
            must be that of the served policy.
        name: for rows of results.

    Raises:
        ConfigurationError: the reward is not a Python function.
    """

    reward: HostReward | Aggregated
    name: str = "function"
    needs_log_probs: bool = False
    _questions: Any = None

    def __post_init__(self) -> None:
        reward: Any = self.reward
        if isinstance(reward, Aggregated) and isinstance(reward.reward, HostReward):
            reward = AggregatedOnHost(reward.reward, reward.aggregation)
        if not isinstance(reward, HostReward):
            raise ConfigurationError(
                f"A HostScorer takes a reward that is a Python function of the text, "
                f"such as TextReward or Verifier, not {type(reward).__name__}. "
                "tsi.serving.served_reward makes the scorers of reward models."
            )
        self._function = reward

    def prepare(self, questions: Sequence[str]) -> None:
        """See `Scorer`."""
        self._function.begin_run()
        self._questions = jax.tree.map(np.asarray, self._function.prepare(questions))

    def score(self, rows: Sequence[ScoredRow]) -> list[Score | Exception]:
        """See `Scorer`."""
        prefixes = [
            Prefix(
                jax.tree.map(lambda leaf, p=row.problem: leaf[p], self._questions),
                list(row.tokens),
                row.stopped,
                row.finished,
                row.ends,
            )
            for row in rows
        ]
        log_odds, errors = score_each(self._function, prefixes)
        return [
            errors.get(index, Score(float(value)))
            for index, value in enumerate(log_odds)
        ]
