"""The aggregated scores of steps, for a reward that is a Python function.

The engine calls such rewards between two programs and passes whole prefixes, so that
the scores of earlier steps must be known on the host. Scores of a run's prefixes are
cached by a digest, and each prefix is scored once while it is in the cache.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from tsi.models.buckets import bucket_size
from tsi.rewards.aggregation import aggregate
from tsi.rewards.host_reward import HostReward, Prefix
from tsi.weights import weight_dtype

CACHED_SCORES = 65_536
"""The most scores in the cache; scores that were not used for longest leave first."""

_aggregate = jax.jit(aggregate, static_argnames="aggregation")


class AggregatedOnHost(HostReward):
    """A reward of prefixes, aggregated from a Python function's scores of their steps.

    Args:
        reward: its log-odds of a prefix are the score of the prefix's newest step.
        aggregation: see :data:`tsi.rewards.aggregation.AGGREGATIONS`.
    """

    def __init__(self, reward: HostReward, aggregation: str) -> None:
        self.reward, self.aggregation = reward, aggregation
        self._scores: OrderedDict[bytes, float] = OrderedDict()

    def prepare(self, questions: Sequence[str]) -> Any:
        """See :class:`tsi.rewards.reward.Reward`."""
        return self.reward.prepare(questions)

    def begin_run(self) -> None:
        """See :class:`tsi.rewards.host_reward.HostReward`."""
        self._scores.clear()
        self.reward.begin_run()

    def score_rows(self, rows: Sequence[Prefix]) -> Float[np.ndarray, " R"]:
        """See :class:`tsi.rewards.host_reward.HostReward`."""
        keys = [_keys_of(row) for row in rows]
        unknown: dict[bytes, Prefix] = {}
        for row, row_keys in zip(rows, keys, strict=True):
            for end, key in zip(row.step_ends, row_keys, strict=True):
                if key not in self._scores:
                    is_newest = end == row.step_ends[-1]
                    unknown[key] = row if is_newest else _cut(row, end)
        if unknown:
            log_odds = self.reward.score_rows(list(unknown.values()))
            self._scores.update(zip(unknown, log_odds.tolist(), strict=True))
        width = bucket_size(max(map(len, keys)), 8)
        scores = np.zeros((bucket_size(len(rows), 8), width), weight_dtype())
        counts = np.zeros(len(scores), np.int32)
        for i, row_keys in enumerate(keys):
            counts[i] = len(row_keys)
            for j, key in enumerate(row_keys):
                self._scores.move_to_end(key)
                scores[i, j] = self._scores[key]
        while len(self._scores) > CACHED_SCORES:
            self._scores.popitem(last=False)
        values = _aggregate(
            jnp.asarray(scores), jnp.asarray(counts), aggregation=self.aggregation
        )
        return np.asarray(values)[: len(rows)]


def _keys_of(row: Prefix) -> list[bytes]:
    """A digest of the prefix at the end of each step, with its question and flags."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(row.question):
        digest.update(np.asarray(leaf).tobytes())
    tokens, keys, start = np.asarray(row.tokens, np.int32), [], 0
    for end in row.step_ends:
        digest.update(tokens[start:end].tobytes())
        prefix, start = digest.copy(), end
        is_newest = end == row.step_ends[-1]
        prefix.update(bytes((row.stopped, row.finished) if is_newest else (0, 0)))
        keys.append(prefix.digest())
    return keys


def _cut(row: Prefix, end: int) -> Prefix:
    """The row when it had `end` tokens."""
    ends = tuple(e for e in row.step_ends if e <= end)
    return Prefix(row.question, row.tokens[:end], False, False, ends)
