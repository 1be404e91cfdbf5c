"""The rows of a lane (:mod:`tsi.serving.lane`): tokens, and numbers by step.

A row is immutable, so a fork copies a reference.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from tsi.engine.programs.row_replies import RowReplies
from tsi.reasoning.particles import Particles
from tsi.serving.step import ServedStep
from tsi.weights import weight_dtype


class AfterStep(NamedTuple):
    """The numbers of a solution after one of its steps.

    Attributes:
        length: number of its ids or code points.
        num_tokens: number of tokens of the solution, as the server counts them.
        log_prob: log p of the solution so far; NaN if not known.
        log_odds: log-odds of its reward.
    """

    length: int
    num_tokens: int
    log_prob: float
    log_odds: float


START = AfterStep(0, 0, 0.0, 0.0)


class Row(NamedTuple):
    """A solution so far.

    Attributes:
        tokens: ids, or code points of text.
        steps: numbers after each step.
        stopped: whether the policy has ended the solution.
        truncated: whether the solution has ended at a limit.
    """

    tokens: tuple[int, ...] = ()
    steps: tuple[AfterStep, ...] = ()
    stopped: bool = False
    truncated: bool = False

    @property
    def newest(self) -> AfterStep:
        """The numbers after the newest step."""
        return self.steps[-1] if self.steps else START

    @property
    def finished(self) -> bool:
        """Whether the row takes no further step."""
        return self.stopped or self.truncated

    def cut(self, depth: int) -> "Row":
        """The first `depth` steps; the row itself if it has no more."""
        if depth >= len(self.steps):
            return self
        steps = self.steps[:depth]
        length = steps[-1].length if steps else 0
        return Row(self.tokens[:length], steps)

    def step(self, index: int) -> tuple[int, ...]:
        """The tokens of one step."""
        start = self.steps[index - 1].length if index else 0
        return self.tokens[start : self.steps[index].length]

    def extend(
        self,
        tokens: Sequence[int],
        count: int,
        log_prob: float,
        log_odds: float,
        *,
        stopped: bool,
        truncated: bool,
    ) -> "Row":
        """The row with one more step."""
        newest = self.newest
        after = AfterStep(
            newest.length + len(tokens),
            newest.num_tokens + count,
            newest.log_prob + log_prob,
            log_odds,
        )
        return Row((*self.tokens, *tokens), (*self.steps, after), stopped, truncated)


class Spending(NamedTuple):
    """The cost of each working row, [W] each; a cost does not move when rows fork.

    Attributes:
        generated: number of tokens drawn.
        reward_read: number of tokens that a reward model has read.
        repeated: number of tokens that the policy has read to compute their
            probability.
        prompt: number of tokens of prefixes that were sent.
        cached: how many of these were read from the server's cache.
        requests: number of steps that were requested.
        retokenized: number of steps that a text server certainly reads as other tokens
            than it has drawn.
    """

    generated: Int[np.ndarray, " W"]
    reward_read: Int[np.ndarray, " W"]
    repeated: Int[np.ndarray, " W"]
    prompt: Int[np.ndarray, " W"]
    cached: Int[np.ndarray, " W"]
    requests: Int[np.ndarray, " W"]
    retokenized: Int[np.ndarray, " W"]


def zero_spending(rows: int) -> Spending:
    """The cost of new rows: zero."""
    return Spending(*(np.zeros(rows, np.int64) for _ in Spending._fields))


class ServedRows:
    """The rows of P problems: all working rows (W each), then all stored ones (M each).

    Attributes:
        rows: all of them.
        spending: of the working rows.

    Args:
        working: P * W.
        total: P * (W + M).
        log_truncation: added to the log potential of a truncated solution.
    """

    def __init__(self, working: int, total: int, log_truncation: float) -> None:
        self.rows = [Row()] * total
        self.spending = zero_spending(working)
        self._log_truncation = log_truncation
        # Looked up once, since JAX takes a tenth of a millisecond.
        self._dtype: Any = weight_dtype()

    def enter(self, rows: Int[np.ndarray, " n"]) -> None:
        """Begin with empty solutions and a cost of zero."""
        for row in rows.tolist():
            self.rows[row] = Row()
            if row < len(self.spending.generated):
                for counts in self.spending:
                    counts[row] = 0

    def keep(
        self, stored_rows: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]
    ) -> None:
        """Overwrite stored rows with copies of working rows."""
        kept_rows = [self.rows[row] for row in rows.tolist()]
        for slot, row in zip(stored_rows.tolist(), kept_rows, strict=True):
            self.rows[slot] = row

    def arrange(
        self,
        rows: Int[np.ndarray, " n"],
        parents: Int[np.ndarray, " n"],
        limit: Int[np.ndarray, " n"] | None,
    ) -> RowReplies:
        """Give working rows their parents' prefixes, cut back; also their replies."""
        new_rows = [self.rows[parent] for parent in parents.tolist()]
        if limit is not None:
            new_rows = [
                row.cut(int(depth)) for row, depth in zip(new_rows, limit, strict=True)
            ]
        for index, row in zip(rows.tolist(), new_rows, strict=True):
            self.rows[index] = row
        return self.replies(rows, np.zeros(len(rows)))

    def extend(self, index: int, row: Row, step: ServedStep) -> None:
        """Append a step that the server has drawn to a working row."""
        self.rows[index] = row
        counts = self.spending
        counts.generated[index] += step.num_tokens
        counts.prompt[index] += step.prompt_tokens
        counts.cached[index] += step.cached_tokens
        counts.requests[index] += 1
        # The last step of a solution is not read again.
        counts.retokenized[index] += step.is_retokenized and not row.finished

    def replies(self, rows: Int[np.ndarray, " n"], log_probs: Any) -> RowReplies:
        """The replies of working rows for their sampler.

        Args:
            rows: working rows.
            log_probs: log p of each row's step.
        """
        requested_rows = [self.rows[row] for row in rows.tolist()]
        newest = [row.newest for row in requested_rows]
        dtype = self._dtype
        log_odds = [after.log_odds for after in newest]
        truncated = np.asarray([row.truncated for row in requested_rows], bool)
        potentials: Any = np.asarray(log_odds, dtype)
        potentials = np.where(truncated, potentials + self._log_truncation, potentials)
        zeros: Any = np.zeros(len(requested_rows), dtype)
        steps: Any = np.asarray(log_probs, dtype)
        finished: Any = np.asarray([row.finished for row in requested_rows], bool)
        lengths: Any = np.asarray([after.num_tokens for after in newest], np.int32)
        return RowReplies(potentials, zeros, steps, finished, lengths)

    def particles(self, rows: Int[np.ndarray, " n"], max_steps: int) -> Particles:
        """Rows as particles for the outcome of a run, without caches."""
        requested_rows = [self.rows[row] for row in rows.tolist()]
        width = max([1, *(len(row.tokens) for row in requested_rows)])
        tokens = np.zeros((len(requested_rows), width), np.int32)
        ends = np.zeros((len(requested_rows), max_steps), np.int32)
        for row, ids, steps in zip(requested_rows, tokens, ends, strict=True):
            ids[: len(row.tokens)] = row.tokens
            steps[: len(row.steps)] = [after.length for after in row.steps]
        absent: Any = None
        numbers: Any = np.asarray
        log_prob = numbers([row.newest.log_prob for row in requested_rows])
        return Particles(
            tokens=numbers(tokens),
            lengths=numbers([len(row.tokens) for row in requested_rows]),
            step_ends=numbers(ends),
            pending=absent,
            boundary_state=absent,
            finished=numbers([row.finished for row in requested_rows]),
            truncated=numbers([row.truncated for row in requested_rows]),
            log_prob=log_prob,
            log_proposal=log_prob,
            log_odds=numbers(
                [row.newest.log_odds for row in requested_rows], weight_dtype()
            ),
            history=absent,
            prompt=absent,
            suffix=absent,
            reward_state=absent,
            cost=absent,
        )

    def cost(self, rows: Int[np.ndarray, " n"]) -> Spending:
        """The cost of working rows."""
        return Spending(*(counts[rows].copy() for counts in self.spending))
