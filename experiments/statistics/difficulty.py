"""Bins of problems by their difficulty for the policy.

The difficulty of a problem is the policy's own pass rate on it, estimated from samples
that are not those of the methods under comparison: with the same samples, problems on
which a method was lucky would count as easy.

Reference: Snell et al. 2024, arXiv 2408.03314, section 3.2: five quantiles of the pass
rate, estimated from 2,048 samples of each problem.
"""

import numpy as np
from jaxtyping import Float, Int


def difficulty_bins(
    pass_rates: Float[np.ndarray, "P"], num_bins: int
) -> Int[np.ndarray, "P"]:
    """The bin of each problem by quantiles of the pass rate; 0 is the hardest.

    Problems of equal pass rate are in one bin, so bins may differ in size.

    Args:
        pass_rates: of each problem.
        num_bins: number of quantiles.
    """
    _, groups, sizes = np.unique(pass_rates, return_inverse=True, return_counts=True)
    # Equal rates share the mean of their ranks.
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[groups]
    middles = (ranks - 0.5) / len(pass_rates)
    return np.minimum((middles * num_bins).astype(np.int64), num_bins - 1)
