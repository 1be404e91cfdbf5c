"""A cache of the scores of steps, by the content of the prefix."""

from collections import OrderedDict
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from tsi.rewards.aggregation import aggregate
from tsi.serving.scorer import ScoredRow

MAX_SCORES = 2**16
"""Maximum number of stored scores; a score that was dropped is requested again."""


class StepScores:
    """The scores of the prefixes that end with a step, by problem and tokens."""

    def __init__(self) -> None:
        self._scores: OrderedDict[tuple[int, tuple[int, ...]], float] = OrderedDict()

    def find(self, problem: int, tokens: tuple[int, ...]) -> float | None:
        """The score of a prefix, or None."""
        key = problem, tokens
        if key in self._scores:
            self._scores.move_to_end(key)
        return self._scores.get(key)

    def keep(self, problem: int, tokens: tuple[int, ...], score: float) -> None:
        """Store a score, and drop the least recently used one if there are too many."""
        self._scores[problem, tokens] = score
        if len(self._scores) > MAX_SCORES:
            self._scores.popitem(last=False)


def prefix_after(row: ScoredRow, step: int) -> ScoredRow:
    """A row as it was after one of its steps; after the last, the row itself.

    Args:
        row: with at least one step.
        step: index of the step.
    """
    if step == len(row.ends) - 1:
        return row
    ends = row.ends[: step + 1]
    return row._replace(
        tokens=row.tokens[: ends[-1]], ends=ends, stopped=False, finished=False
    )


def aggregate_scores(scores: Sequence[float], aggregation: str) -> float:
    """The log-odds of a prefix from those of its steps.

    Args:
        scores: log-odds of each step; 0 is returned for none.
        aggregation: one of :data:`tsi.rewards.aggregation.AGGREGATIONS`.
    """
    if aggregation == "last" or not scores:
        return float(scores[-1]) if scores else 0.0
    # Few widths, since a program is compiled for each.
    width = 1 << (len(scores) - 1).bit_length()
    padded = np.zeros((1, width), np.float32)
    padded[0, : len(scores)] = scores
    counts = jnp.asarray([len(scores)])
    return float(aggregate(jnp.asarray(padded), counts, aggregation)[0])
