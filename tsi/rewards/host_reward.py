"""Rewards that are Python functions of the text so far.

They run on the host. The engine calls them between two programs (`score_rows`), so its
programs contain no callback and can be cached between processes, and an error in the
function affects only the problem on which it occurred. Within one compiled program, as
in :func:`tsi.run.run`, the same function is called through a callback, and so is that
of a :class:`tsi.twists.value.TwistedVerifier`.
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


class Prefix(NamedTuple):
    """One row after a step, in the form that a reward on the host takes.

    Attributes:
        question: arrays that ``prepare`` made from the row's problem, or None.
        tokens: ids of the solution so far.
        stopped: whether the policy has ended the solution in this step.
        finished: whether the solution has ended, by itself or at a limit.
        step_ends: number of tokens at the end of each step; empty within a compiled
            program.
    """

    question: Any
    tokens: list[int]
    stopped: bool
    finished: bool
    step_ends: tuple[int, ...] = ()


class HostReward(Stateless):
    """A reward that keeps no state and is computed on the host."""

    def begin_run(self) -> None:
        """Forget what earlier runs have scored; called before a run."""

    @abstractmethod
    def score_rows(self, rows: Sequence[Prefix]) -> Float[np.ndarray, " R"]:
        """Log-odds of rows that have taken a step; there is at least one row.

        Raises:
            RewardError: the user's function did not return numbers.
        """

    def read(self, state: Any, step: Any, params: Any) -> tuple[Any, Reading]:
        """See :class:`tsi.rewards.reward.Reward`; scores only rows that took a step."""
        dtype = weight_dtype()

        def score_on_host(
            prepared: Any,
            solution: Int[HostArray, "R T"],
            lengths: Int[HostArray, " R"],
            step_mask: Bool[HostArray, " R"],
            stopped: Bool[HostArray, " R"],
            finished: Bool[HostArray, " R"],
        ) -> Float[np.ndarray, " R"]:
            log_odds = np.zeros(lengths.shape, dtype)
            scored = np.flatnonzero(step_mask)
            # The rows of one problem are contiguous.
            per_problem = [len(lengths) // len(x) for x in jax.tree.leaves(prepared)]
            each = per_problem[0] if per_problem else 1
            rows = [
                Prefix(
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
        """None: no model reads tokens."""
        return None


class DeferredReward:
    """A reward on the host within a program whose caller fills in the log-odds."""

    def __init__(self, reward: HostReward) -> None:
        self.reward = reward

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reward, name)

    def read(self, state: Any, step: Any, params: Any) -> tuple[Any, Reading]:
        """Log-odds of zero."""
        zeros = jnp.zeros_like(step.counts)
        return state, Reading(zeros.astype(weight_dtype()), zeros)


def score_each(
    reward: HostReward, rows: Sequence[Prefix]
) -> tuple[Float[np.ndarray, " R"], dict[int, Exception]]:
    """Log-odds of rows, 0 where the function failed, and the errors by row.

    If the function fails for a batch of rows, each row is scored separately, since a
    single row may be the cause.
    """
    try:
        return reward.score_rows(rows), {}
    except Exception as error:
        if len(rows) == 1:
            return np.zeros(1, weight_dtype()), {0: error}
    single_scores = [score_each(reward, [row]) for row in rows]
    errors = {i: errors[0] for i, (_, errors) in enumerate(single_scores) if errors}
    return np.concatenate([log_odds for log_odds, _ in single_scores]), errors


def check_scores(scores: Any, count: int) -> Float[np.ndarray, " R"]:
    """The scores that a user's function returned, as float64.

    Args:
        scores: the function's result.
        count: number of texts that the function was given.

    Raises:
        RewardError: the function did not return one number per text.
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
        f"A reward's function was given {count} texts and returned {what}. It must "
        "return one number per text, such as a list of numbers."
    )
