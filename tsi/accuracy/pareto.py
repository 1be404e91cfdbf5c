"""Pareto k: the shape of the upper tail of the weights.

The largest weights above a threshold follow, in the limit, a generalized Pareto law

    P(excess > x) = (1 - theta x)^(-1/k),   theta = -k / sigma,

and moments of order 1/k and more do not exist. Above k = 0.7 a self-normalised estimate
of any practical size is dominated by its few largest weights, and standard errors from
the same weights are too small [1]. k is estimated from the exceedances by the
quasi-Bayes estimator of [2], with a prior towards 0.5 that counts as ten observations,
as in [1].

References:
    [1] Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv 1507.02646, section 3 and
        appendix C. Tail length and prior as there.
    [2] Zhang and Stephens 2009, Technometrics 51(3). Their k is -k here.
"""

import math

import numpy as np
from jaxtyping import Float

UNRELIABLE_K = 0.7
MIN_TAIL = 5


def pareto_k(log_weights: Float[np.ndarray, "N"]) -> float:
    """Estimate k from the largest min(N / 5, 3 sqrt(N)) weights.

    Args:
        log_weights: of the final particles, in any normalisation; -inf is zero weight.

    Returns:
        k, or NaN if fewer than five weights are above the threshold. This is always so
        for fewer than 25 particles, and if all weights are equal or tie at the
        threshold. After a resampling, the final weights contain only the last steps, so
        k does not measure earlier losses.
    """
    log_weights = np.asarray(log_weights, np.float64)
    tail_length = math.floor(min(log_weights.size / 5, 3 * log_weights.size**0.5))
    top = log_weights.max()
    if tail_length < MIN_TAIL or not np.isfinite(top):
        return math.nan
    weights = np.sort(np.exp(log_weights - top))
    threshold = weights[-tail_length - 1]
    exceedances = weights[weights > threshold] - threshold
    if exceedances.size < MIN_TAIL:
        return math.nan
    return generalized_pareto_k(exceedances)


def generalized_pareto_k(exceedances: Float[np.ndarray, "M"]) -> float:
    """Shape of a generalized Pareto law with location zero.

    Args:
        exceedances: positive numbers, in increasing order.

    Returns:
        The posterior mean of k with the prior of [1].
    """
    x, size = exceedances, exceedances.size
    quartile = x[math.floor(size / 4 + 0.5) - 1]
    grid_size = 30 + math.floor(size**0.5)
    places = np.arange(1, grid_size + 1) - 0.5
    grid = 1 / x[-1] + (1 - np.sqrt(grid_size / places)) / (3 * quartile)
    # At zero the law is exponential and the formula gives 0 / 0, so use a value near
    # zero.
    grid = np.where(grid == 0.0, np.finfo(float).eps / x[-1], grid)
    k = np.log1p(-grid[:, None] * x).mean(axis=1)
    log_likelihood = size * (np.log(-grid / k) - k - 1)
    likelihood = np.exp(log_likelihood - log_likelihood.max())
    theta = float(np.sum(grid * likelihood) / np.sum(likelihood))
    k_hat = float(np.log1p(-theta * x).mean())
    return (size * k_hat + 10 * 0.5) / (size + 10)
