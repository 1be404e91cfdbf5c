"""Accuracies with standard errors and Wilson intervals, clustered by problem.

Seeds of one problem share its difficulty, so the mean over seeds of each problem is one
observation. The standard error is that of their mean. It means little where few
problems are right or wrong: after 0 of 8 it is zero. There a Wilson interval replaces
it, for an effective number of observations.

**Effective number.** The clustered variance of the mean is p (1 - p) / n for n
independent observations, which defines n (the number of rows divided by the design
effect). With one seed n is the number of problems P, and the interval is Wilson's. With
S seeds n lies between P and P S. The design effect is itself estimated from P problems,
so n is multiplied by (z / t)^2, where t is the quantile of Student's distribution with
P - 1 degrees of freedom, and kept above P. If all rows are right, or all wrong, the
correlation of seeds cannot be estimated: then n = P, as if they were copies.

References: Wilson 1927, J. Am. Stat. Assoc. 22; Korn and Graubard 1998, Survey
Methodology 24, effective sample sizes for proportions in clusters; Miller 2024, arXiv
2411.00640, clustered standard errors of evaluations.
"""

import math

import numpy as np
from jaxtyping import Shaped
from scipy import special

from tsi.experiments.statistics.wilson_interval import Interval, wilson_interval

FEW = 10
"""If fewer effective observations than this are right, or wrong, an interval takes the
place of the standard error."""

ONE_ERROR = float(special.ndtr(1) - special.ndtr(-1))
"""Coverage of plus or minus one standard error."""


def accuracy(correct: Shaped[np.ndarray, "P S"]) -> tuple[float, float]:
    """Mean and its standard error, clustered by problem; NaN for a single problem.

    Args:
        correct: 0 or 1 for each problem and seed.
    """
    by_problem = np.asarray(correct, np.float64).mean(axis=1)
    if by_problem.size < 2:
        return float(by_problem.mean()), float("nan")
    error = by_problem.std(ddof=1) / np.sqrt(by_problem.size)
    return float(by_problem.mean()), float(error)


def effective_number(correct: Shaped[np.ndarray, "P S"]) -> float:
    """Number of independent observations with the clustered variance of the mean.

    Args:
        correct: 0 or 1 for each problem and seed.
    """
    correct = np.asarray(correct, np.float64)
    num_problems, num_seeds = correct.shape
    if num_seeds == 1 or num_problems == 1:
        return float(num_problems)
    mean, variance = correct.mean(), correct.mean(axis=1).var()
    if mean in (0.0, 1.0):
        return float(num_problems)
    number = math.inf if variance == 0 else mean * (1 - mean) / variance * num_problems
    shrinkage = (special.ndtri(0.975) / special.stdtrit(num_problems - 1, 0.975)) ** 2
    number = min(number, float(correct.size)) * shrinkage
    return float(max(number, num_problems))


def accuracy_interval(
    correct: Shaped[np.ndarray, "P S"], level: float = 0.95
) -> Interval:
    """Wilson's interval of the accuracy, for the effective number of observations.

    Args:
        correct: 0 or 1 for each problem and seed.
        level: coverage; `ONE_ERROR` for that of one standard error on either side.
    """
    return wilson_interval(float(np.mean(correct)), effective_number(correct), level)


def has_few(correct: Shaped[np.ndarray, "P S"]) -> bool:
    """Whether too few rows are right, or wrong, for a standard error."""
    mean = float(np.mean(correct))
    return min(mean, 1 - mean) * effective_number(correct) < FEW
