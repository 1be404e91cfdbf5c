r"""pass@k: the probability that at least one of k independent samples is right.

With c of n samples right, the share of subsets of size k without a right one is an
unbiased estimate of the probability of none,

    pass@k = 1 - C(n - c, k) / C(n, k),

for k at most n. (1 - (1 - c/n)^k is biased.)

Reference: Chen et al. 2021, arXiv 2107.03374, equation 1.
"""

import numpy as np
from jaxtyping import Float, Int, Real
from scipy.special import gammaln

from tsi.errors import ConfigurationError


def pass_at_k(
    num_right: Int[np.ndarray, "..."], num_samples: int, k: int
) -> Float[np.ndarray, "..."]:
    """Unbiased estimate of pass@k for each problem.

    Args:
        num_right: right samples of each problem, of `num_samples` independent ones.
        num_samples: n.
        k: at most n.

    Raises:
        ConfigurationError: k is larger than n or not positive, or there are more right
            samples than samples.
    """
    wrong = np.asarray(num_samples - num_right)
    if not 1 <= k <= num_samples or (wrong < 0).any() or (wrong > num_samples).any():
        raise ConfigurationError(
            f"pass@{k} needs 1 <= k <= n and 0 <= right <= n, with n = {num_samples}; "
            "draw more samples, or choose a smaller k."
        )
    total = log_choose(np.array(num_samples), k)
    return np.asarray(1 - np.exp(log_choose(wrong, k) - total))


def log_choose(n: Real[np.ndarray, "..."], k: int) -> Float[np.ndarray, "..."]:
    """Log of the number of subsets of size k; -inf if there are none."""
    n = np.asarray(n, np.float64)
    # Where n < k the arguments of gammaln are replaced, and then not used.
    size = np.maximum(n, k)
    log_number = gammaln(size + 1) - gammaln(k + 1) - gammaln(size - k + 1)
    return np.where(n < k, -np.inf, log_number)
