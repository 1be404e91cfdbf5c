"""The rows of a lane whose policy is behind a server: tokens, and numbers by step.

A row is a value that is never changed, so a fork copies a reference.
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
        length: of its tokens: ids, or code points.
        num_tokens: of the solution, as the server counts them.
        log_prob: log p of the solution so far; NaN if not known.
        log_odds: of its reward.
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
        stopped: whether the policy has ended it.
        truncated: whether it has ended at a limit.
    """

    tokens: tuple[int, ...] = ()
    steps: tuple[AfterStep, ...] = ()
    stopped: bool = False
    truncated: bool = False

    @property
    def now(self) -> AfterStep:
        """The numbers after the newest step."""
        return self.steps[-1] if self.steps else START

    @property
    def finished(self) -> bool:
        """Whether it takes no further step."""
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
        now = self.now
        after = AfterStep(
            now.length + len(tokens),
            now.num_tokens + count,
            now.log_prob + log_prob,
            log_odds,
        )
        return Row((*self.tokens, *tokens), (*self.steps, after), stopped, truncated)


class Spending(NamedTuple):
    """What each working row has cost, [W] each, where it stands and not where it goes.

    Attributes:
        generated: tokens drawn.
        reward_read: tokens that a reward model has read.
        repeated: tokens read by the policy for their probability.
        prompt: tokens of prefixes that were sent.
        cached: of these, read from the server's cache.
        requests: steps that were asked for.
    """

    generated: Int[np.ndarray, " W"]
    reward_read: Int[np.ndarray, " W"]
    repeated: Int[np.ndarray, " W"]
    prompt: Int[np.ndarray, " W"]
    cached: Int[np.ndarray, " W"]
    requests: Int[np.ndarray, " W"]


def no_spending(rows: int) -> Spending:
    """The cost of new rows: zero."""
    return Spending(*(np.zeros(rows, np.int64) for _ in Spending._fields))


class ServedRows:
    """W working rows of each of P problems, and behind them M stored ones of each.

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
        self.spending = no_spending(working)
        self._log_truncation = log_truncation
        # It takes JAX a tenth of a millisecond to say.
        self._dtype: Any = weight_dtype()

    def enter(self, rows: Int[np.ndarray, " n"]) -> None:
        """Begin with empty solutions, at no cost yet."""
        for row in rows.tolist():
            self.rows[row] = Row()
            if row < len(self.spending.generated):
                for counts in self.spending:
                    counts[row] = 0

    def keep(self, stored: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]) -> None:
        """Stored rows become copies of working rows."""
        kept = [self.rows[row] for row in rows.tolist()]
        for slot, row in zip(stored.tolist(), kept, strict=True):
            self.rows[slot] = row

    def arrange(
        self,
        rows: Int[np.ndarray, " n"],
        parents: Int[np.ndarray, " n"],
        limit: Int[np.ndarray, " n"] | None,
    ) -> RowReplies:
        """Give working rows the prefixes of their parents, cut back; their numbers."""
        moved = [self.rows[parent] for parent in parents.tolist()]
        if limit is not None:
            moved = [
                row.cut(int(depth)) for row, depth in zip(moved, limit, strict=True)
            ]
        for index, row in zip(rows.tolist(), moved, strict=True):
            self.rows[index] = row
        return self.replies(rows, np.zeros(len(rows)))

    def extend(self, index: int, row: Row, step: ServedStep) -> None:
        """A working row has taken a step, which the server has drawn."""
        self.rows[index] = row
        counts = self.spending
        counts.generated[index] += step.num_tokens
        counts.prompt[index] += step.prompt_tokens
        counts.cached[index] += step.cached_tokens
        counts.requests[index] += 1

    def replies(self, rows: Int[np.ndarray, " n"], log_probs: Any) -> RowReplies:
        """The numbers of working rows for their sampler.

        Args:
            rows: which.
            log_probs: log p of the step of each.
        """
        found = [self.rows[row] for row in rows.tolist()]
        dtype = self._dtype
        log_odds = [row.now.log_odds for row in found]
        truncated = np.asarray([row.truncated for row in found], bool)
        potentials: Any = np.asarray(log_odds, dtype)
        potentials = np.where(truncated, potentials + self._log_truncation, potentials)
        zeros: Any = np.zeros(len(found), dtype)
        steps: Any = np.asarray(log_probs, dtype)
        finished: Any = np.asarray([row.finished for row in found], bool)
        lengths: Any = np.asarray([row.now.num_tokens for row in found], np.int32)
        return RowReplies(potentials, zeros, steps, finished, lengths)

    def particles(self, rows: Int[np.ndarray, " n"], max_steps: int) -> Particles:
        """Rows as the outcome of a run reads them; their caches are absent."""
        found = [self.rows[row] for row in rows.tolist()]
        width = max([1, *(len(row.tokens) for row in found)])
        tokens = np.zeros((len(found), width), np.int32)
        ends = np.zeros((len(found), max_steps), np.int32)
        for row, ids, steps in zip(found, tokens, ends, strict=True):
            ids[: len(row.tokens)] = row.tokens
            steps[: len(row.steps)] = [after.length for after in row.steps]
        absent: Any = None
        numbers: Any = np.asarray
        log_prob = numbers([row.now.log_prob for row in found])
        return Particles(
            tokens=numbers(tokens),
            lengths=numbers([len(row.tokens) for row in found]),
            step_ends=numbers(ends),
            pending=absent,
            boundary_state=absent,
            finished=numbers([row.finished for row in found]),
            truncated=numbers([row.truncated for row in found]),
            log_prob=log_prob,
            log_proposal=log_prob,
            log_odds=numbers([row.now.log_odds for row in found], weight_dtype()),
            history=absent,
            prompt=absent,
            suffix=absent,
            reward_state=absent,
            cost=absent,
        )

    def cost(self, rows: Int[np.ndarray, " n"]) -> Spending:
        """What working rows have cost."""
        return Spending(*(counts[rows].copy() for counts in self.spending))
