"""Pooled tests of several targets, for a bias that is too small to see on one of them.

A sampler that is wrong by a factor has the same relative error on all targets. With
relative errors e_k of the evidence and standard errors s_k, the best estimate of the
common error has weights 1 / s_k^2, and

    z = sum_k e_k / s_k^2  /  sqrt(sum_k 1 / s_k^2)

is standard normal if there is no bias. Errors of opposite sign do not cancel in
sum_k z_k^2, which is chi-square, and in Fisher's -2 sum_k log p_k of the posteriors'
p-values. Runs on different targets are independent, since their keys are.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special

from tsi.bench.unbiasedness import EXACT, MeasureTest, exact_z


def pooled_z(measures: Sequence[MeasureTest]) -> tuple[float, float]:
    """The common relative error of the evidence, and its z score.

    Estimates that do not vary are left out: each is either exact or wrong.
    """
    varying = [m for m in measures if m.standard_error > EXACT / 100]
    if not varying:
        return 0.0, 0.0
    errors = np.array([m.ratio - 1.0 for m in varying])
    precisions = np.array([m.standard_error for m in varying]) ** -2.0
    error = float(np.sum(errors * precisions) / np.sum(precisions))
    return error, exact_z(error, float(np.sum(precisions) ** -0.5))


def pooled_p(measures: Sequence[MeasureTest]) -> float:
    """One p-value of all evidences and posteriors, without cancellation of errors."""
    scores = np.array([m.z for m in measures if np.isfinite(m.z)])
    p_values = np.array([m.p_value for m in measures if m.degrees > 0])
    varying = scores[scores != 0.0]
    evidence = special.chdtrc(max(len(varying), 1), np.sum(varying**2))
    posterior = 1.0
    if len(p_values):
        fisher = -2.0 * np.sum(np.log(np.maximum(p_values, 1e-300)))
        posterior = special.chdtrc(2 * len(p_values), fisher)
    # Evidence and posterior of a target are not independent: Bonferroni.
    return float(min(1.0, 2.0 * min(evidence, posterior)))
