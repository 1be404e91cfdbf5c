"""Rewards that are Python functions of what has been written.

They run on the host. The engine asks for their numbers between two programs
(`score_rows`), so that its programs know no callback and are kept between processes,
and so that a function that fails costs the problem that it failed on. Within one
compiled program, as in :func:`tsi.run.run`, the same numbers come by a callback.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.errors import RewardError
from tsi.rewards.reward import Reading, Stateless
from tsi.weights import weight_dtype

HostArray = np.ndarray | jax.Array


class Written(NamedTuple):
    """One row as a reward on the host sees it, after a step.

    Attributes:
        asked: what ``prepare`` has made of its problem, arrays; None if nothing.
        tokens: ids of the solution so far.
        stopped: whether the policy has ended it in this step.
        finished: whether it has ended, by itself or at a limit.
    """

    asked: Any
    tokens: list[int]
    stopped: bool
    finished: bool


class HostReward(Stateless):
    """A reward that remembers nothing and is computed on the host."""

    @abstractmethod
    def score_rows(self, rows: Sequence[Written]) -> Float[np.ndarray, " R"]:
        """Log-odds of rows that have taken a step, at least one.

        Raises:
            RewardError: the user's function gave something else than numbers.
        """

    def read(self, state: Any, step: Any, params: Any) -> tuple[Any, Reading]:
        """See :class:`tsi.rewards.reward.Reward`; rows that took no step are not looked
        at."""
        dtype = weight_dtype()

        def score_on_host(
            prepared: Any,
            solution: Int[HostArray, "R T"],
            lengths: Int[HostArray, " R"],
            live: Bool[HostArray, " R"],
            stopped: Bool[HostArray, " R"],
            finished: Bool[HostArray, " R"],
        ) -> Float[np.ndarray, " R"]:
            log_odds = np.zeros(lengths.shape, dtype)
            scored = np.flatnonzero(live)
            # Rows stand problem by problem.
            per_problem = [len(lengths) // len(x) for x in jax.tree.leaves(prepared)]
            each = per_problem[0] if per_problem else 1
            rows = [
                Written(
                    jax.tree.map(
                        lambda leaf, p=row // each: np.asarray(leaf[p]), prepared
                    ),
                    np.asarray(solution[row, : lengths[row]]).tolist(),
                    bool(stopped[row]),
                    bool(finished[row]),
                )
                for row in scored
            ]
            if rows:
                log_odds[scored] = self.score_rows(rows)
            return log_odds

        log_odds = jax.pure_callback(
            score_on_host,
            jax.ShapeDtypeStruct(step.counts.shape, dtype),
            state,
            step.solution,
            step.start + step.counts,
            step.counts > 0,
            step.stopped,
            step.finished,
            vmap_method="sequential",
        )
        return state, Reading(log_odds, jnp.zeros_like(step.counts))

    def reader(self, params: Any) -> None:
        """No model reads."""
        return None


class Deferred:
    """A reward on the host, as a program sees it whose caller fills in the numbers."""

    def __init__(self, reward: HostReward) -> None:
        self.reward = reward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reward, name)

    def read(self, state: Any, step: Any, params: Any) -> tuple[Any, Reading]:
        """Log-odds of zero."""
        zeros = jnp.zeros_like(step.counts)
        return state, Reading(zeros.astype(weight_dtype()), zeros)


def scores_of(
    reward: HostReward, rows: Sequence[Written]
) -> tuple[Float[np.ndarray, " R"], dict[int, Exception]]:
    """Log-odds of rows, 0 for those whose score failed, and why these did.

    What fails for many rows is asked for each alone, since one may be to blame.
    """
    try:
        return reward.score_rows(rows), {}
    except Exception as error:
        if len(rows) == 1:
            return np.zeros(1, weight_dtype()), {0: error}
    alone = [scores_of(reward, [row]) for row in rows]
    errors = {i: errors[0] for i, (_, errors) in enumerate(alone) if errors}
    return np.concatenate([log_odds for log_odds, _ in alone]), errors


def numbers_of(scores: Any, count: int) -> Float[np.ndarray, " R"]:
    """What a user's function gave for so many texts, if it is one number each.

    Raises:
        RewardError: it is not.
    """
    try:
        numbers = np.asarray(scores)
    except ValueError:  # lists of different lengths
        numbers = np.asarray(None)
    kinds = (np.number, np.bool_)
    if not any(jnp.issubdtype(numbers.dtype, kind) for kind in kinds):
        what = f"{scores!r:.80}"
    elif numbers.shape != (count,):
        what = f"numbers of shape {numbers.shape}"
    else:
        return numbers.astype(np.float64)
    raise RewardError(
        f"A reward's function was given {count} texts and gave {what}; it must give "
        "one number for each, such as a list of them."
    )
