"""Best-of-N: N independent samples, ranked by the score of the complete solution.

The samples are never resampled and are weighted by their last score only. They target

    p(x) r(x),

so weighted best-of-N, which sums rewards per canonical answer, is the self-normalised
importance sampling estimate of the answer posterior. Best-of-N returns the particle of
largest weight.

References:
    [1] Cobbe et al. 2021, arXiv 2110.14168 (best of N by a verifier).
    [2] Li et al. 2022, arXiv 2206.02336 (verifier-weighted vote).
"""

from tsi.picklable import picklable
from tsi.sampler import Sampler
from tsi.samplers.parts.potentials import Transform, terminal
from tsi.samplers.parts.schedules import never
from tsi.samplers.smc import smc


@picklable
def best_of_n(weights: str | Transform = "reward") -> Sampler:
    """The sample with the best last score.

    Args:
        weights: "reward", "odds", "softmax" or a function of the log potential. A
            monotone function changes the reported weights, but not the answer.
    """
    return smc(schedule=never, potential=terminal(weights), select="argmax")


@picklable
def weighted_best_of_n(weights: str | Transform = "reward") -> Sampler:
    """The answer with the largest sum of weights over its samples.

    Args:
        weights: which weights are summed; "reward" is the published rule.
    """
    return smc(schedule=never, potential=terminal(weights), select="posterior")
