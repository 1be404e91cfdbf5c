"""Expected correctness of a selection from n of the N samples of a pool.

A method that never resamples selects from n independent samples, and every subset of n
of a pool of N is such a sample. The mean over all subsets has the same expectation as
the first n samples and varies less (:mod:`tsi.experiments.statistics.subsets`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from tsi.errors import UnknownNameError
from tsi.experiments.plans.shared_rollouts import first_log_weights
from tsi.experiments.statistics.subsets import (
    SubsetAccuracy,
    best_of_subsets,
    vote_of_subsets,
    weighted_vote_of_subsets,
)
from tsi.results.estimand import Estimand
from tsi.results.parts import FinalParticles
from tsi.results.selection import SELECTION_RULES

NUM_SUBSETS = 2000
"""Random subsets for weighted votes. All are used if there are no more, as for 4 of 16
samples; with 420 problems the random choice adds 0.05 points to an error at most."""


def subset_correctness(
    pool: FinalParticles,
    log_evidence: float,
    estimand: Estimand,
    is_right: Mapping[str, bool],
    sizes: Sequence[int],
    num_subsets: int = NUM_SUBSETS,
) -> SubsetAccuracy:
    """Expected correctness of the answer that a method selects from each size.

    Args:
        pool: N samples of a run that never resampled.
        log_evidence: of that run.
        estimand: of the method, with its selection rule.
        is_right: whether each answer of the pool is right.
        sizes: n, each at most N.
        num_subsets: random subsets for weighted votes.

    Raises:
        ConfigurationError: a size is outside the pool.
    """
    answers = pool.answers
    correct = np.array([answer is not None and is_right[answer] for answer in answers])
    rewards = np.nan_to_num(np.asarray(pool.rewards, np.float64), nan=0.0)
    if estimand.select == "argmax":
        has_answer = np.array([answer is not None for answer in answers])
        return best_of_subsets(np.where(has_answer, rewards, -np.inf), correct, sizes)
    if estimand.select == "vote":
        return vote_of_subsets(answers, correct, sizes)
    if estimand.select == "weighted_vote":
        weights = rewards
    elif estimand.select == "posterior":
        log_weights, _ = first_log_weights(
            pool, log_evidence, len(answers), reads_reward=estimand.reads_reward
        )
        # Only ratios matter for the largest total.
        weights = np.exp(log_weights - log_weights.max())
    else:
        raise UnknownNameError("selection rule", estimand.select, SELECTION_RULES)
    if np.ptp(weights) == 0:
        return vote_of_subsets(answers, correct, sizes)
    return weighted_vote_of_subsets(
        answers, weights, correct, sizes, num_subsets=num_subsets
    )
