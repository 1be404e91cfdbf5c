"""The evidence from independent replicates, with the error of its logarithm.

The mean of R unbiased estimates is unbiased, but the mean of their logarithms is not an
unbiased log evidence, so replicates are averaged before the logarithm is taken. By the
delta method

    se(log Z_bar) = sd(Z) / (sqrt(R) Z_bar),    sd with R - 1 in the denominator.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Evidence(NamedTuple):
    """Log of the mean estimate and its standard error."""

    log_mean: float
    standard_error: float


def evidence_from_replicates(log_evidences: Float[np.ndarray, "R"]) -> Evidence:
    """Average the evidence estimates of independent runs.

    Args:
        log_evidences: of R >= 1 runs of one sampler on one target; -inf for an estimate
            of zero.

    Returns:
        The log mean and its standard error. The error is NaN with one replicate, or if
        every estimate is zero.
    """
    values = np.asarray(log_evidences, np.float64)
    top, size = float(values.max()), values.size
    if math.isinf(top):
        return Evidence(top, math.nan)
    ratios = np.exp(values - top)
    mean = float(ratios.mean())
    error = float(ratios.std(ddof=1)) / (mean * size**0.5) if size > 1 else math.nan
    return Evidence(top + math.log(mean), error)
