"""Log-odds of a reward on the host, written to the rows on the device."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from tsi.engine.agreement import scores_of_first
from tsi.engine.programs.model_programs import Programs
from tsi.engine.programs.row_replies import RowReplies
from tsi.engine.programs.rows import Stored
from tsi.rewards.host_reward import HostReward, Prefix, score_each
from tsi.weights import weight_dtype


class Batch(NamedTuple):
    """Rows that have ended a step.

    Attributes:
        rows: their indices in the store.
        replies: what the programs returned for these rows.
        before: number of their tokens before the step. A step that could not be
            repeated leaves the row, and therefore its number of tokens, unchanged.
        depths: index of each row's step.
        problems: index of each row's problem among all problems.
        places: place of each row's problem.
    """

    rows: Int[np.ndarray, " n"]
    replies: RowReplies
    before: Int[np.ndarray, " n"]
    depths: Int[np.ndarray, " n"]
    problems: Int[np.ndarray, " n"]
    places: Int[np.ndarray, " n"]

    @property
    def step_mask(self) -> Any:
        """Which rows took the step, ``[n]``."""
        return self.replies.lengths > self.before


class ScoredBatch(NamedTuple):
    """The store, and the replies of a batch's rows with their scores."""

    stored: Stored
    rows: Int[np.ndarray, " n"]
    replies: RowReplies


class HostScores:
    """Scores rows that have taken a step, with a reward on the host.

    Args:
        programs: compiled ones.
        reward: the reward.
        questions: the result of its `prepare` for all problems, or None.
        size: number of rows for which the programs are compiled.
    """

    def __init__(
        self, programs: Programs, reward: HostReward, questions: Any, size: int
    ) -> None:
        self.programs, self.reward, self.size = programs, reward, size
        reward.begin_run()
        self._questions = questions
        self._pending: list[tuple[Batch, Float[np.ndarray, " A"]]] = []

    def ask(self, stored: Stored, batch: Batch) -> dict[int, Exception]:
        """Score the steps of rows.

        Returns:
            The errors of rows that could not be scored, by index in the batch.
        """
        log_odds = np.zeros(self.size, weight_dtype())
        errors: dict[int, Exception] = {}
        at = np.flatnonzero(batch.step_mask)
        if len(at):
            padded = np.pad(batch.rows, (0, self.size - len(batch.rows)))
            solutions = self.programs.fetch(self.programs.solutions_of(stored, padded))
            replies = batch.replies
            written = [
                Prefix(
                    jax.tree.map(
                        lambda leaf, p=batch.problems[i]: leaf[p], self._questions
                    ),
                    solutions.tokens[i, : replies.lengths[i]].tolist(),
                    bool(replies.finished[i] & ~solutions.truncated[i]),
                    bool(replies.finished[i]),
                    tuple(solutions.step_ends[i, : batch.depths[i] + 1].tolist()),
                )
                for i in at
            ]
            log_odds[at], errors = scores_of_first(
                self.programs.mesh, lambda: score_each(self.reward, written)
            )
        self._pending.append((batch, log_odds))
        return {int(at[i]): error for i, error in errors.items()}

    def answers(self, stored: Stored, params: Any) -> Iterator[ScoredBatch]:
        """The scores of all pending batches, one by one."""
        while self._pending:
            batch, log_odds = self._pending.pop(0)
            scored = put_scores(self.programs, stored, batch, log_odds, None, params)
            stored = scored.stored
            yield scored


def put_scores(
    programs: Programs,
    stored: Stored,
    batch: Batch,
    log_odds: Float[np.ndarray, " A"],
    spent: Any,
    params: Any,
) -> ScoredBatch:
    """Write log-odds to the rows that took a step.

    Args:
        programs: compiled ones.
        stored: all rows.
        batch: at most A rows.
        log_odds: log-odds of these rows.
        spent: tokens and positions that a model has read for them, as in
            `Programs.score`.
        params: weights and temperatures.
    """
    rows, replies, step_mask = batch.rows, batch.replies, batch.step_mask
    if not step_mask.any():
        return ScoredBatch(stored, rows, replies)
    pad = (0, len(log_odds) - len(rows))
    # Indices out of range are dropped.
    out_of_range = stored.rows.lengths.shape[0]
    padded = np.pad(
        np.where(step_mask, rows, out_of_range), pad, constant_values=out_of_range
    )
    stored, potentials = programs.score(
        stored, padded, np.pad(batch.depths, pad), log_odds, spent, params
    )
    now = programs.fetch(potentials)[: len(rows)]
    scored: Any = np.where(step_mask, now, replies.log_potentials)
    return ScoredBatch(stored, rows, replies._replace(log_potentials=scored))
