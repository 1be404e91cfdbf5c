"""Confidence of the particles of a run: pass@k and calibration."""

import numpy as np

from tsi.experiments.plans.methods import get_method
from tsi.experiments.reports.curves import Curves
from tsi.experiments.statistics.accuracy import accuracy
from tsi.experiments.statistics.calibration import Calibration, calibration
from tsi.experiments.statistics.pass_at_k import pass_at_k


def pass_at_budgets(curves: Curves) -> dict[int, tuple[float, float]]:
    """k -> pass@k and its standard error, clustered by problem.

    All methods with independent samples share them (those of one temperature, if
    methods have several), so the first one's largest pool is used. Without such a
    method, or without the number of right samples, there is none.

    Args:
        curves: from `curves_of`; their budgets are the values of k.
    """
    for method, curve in curves.items():
        if get_method(method).never_resamples:
            size = max(curve)
            right = curve[size].num_right
            if not np.isfinite(right).all():
                # Rows of another program may not tell.
                continue
            right = right.astype(np.int64)
            return {k: accuracy(pass_at_k(right, size, k)) for k in curve}
    return {}


def calibrations(curves: Curves, budget: int) -> dict[str, Calibration]:
    """Method -> calibration of the probability of its selected answer.

    Args:
        curves: from `curves_of`.
        budget: N, more than one: a single particle is always certain.
    """
    calibration_of = {}
    for method, curve in curves.items():
        point = curve.get(budget)
        if point is not None and budget > 1 and np.isfinite(point.probability).all():
            calibration_of[method] = calibration(
                point.probability,
                point.correct,
                budget,
                right_probabilities=point.right_probability,
            )
    return calibration_of
