r"""Paired differences of two methods on the same problems.

Let d_p be the difference of two methods' accuracies on problem p, averaged over seeds.
Runs share problems and random numbers, so the differences vary less than either
accuracy, and the standard error of their mean is that of P independent observations.

**Test.** If the two methods were interchangeable on each problem, every d_p would have
either sign with equal probability. The p-value is the probability of a total as far
from zero, over all signs:

    p = P(|\sum_p s_p d_p| >= |\sum_p d_p|),    s_p = -1 or 1 with probability 1/2.

S d_p is an integer, so the distribution of the total is computed exactly, by
convolution. With one seed this is McNemar's exact test on the discordant pairs.

A method that never resamples may be known by its expected correctness, over all subsets
of a pool of samples. Then S d_p is not an integer and its sign is not random, and p is
that of Student's t test with P - 1 degrees of freedom, which is approximate.

**Interval.** The standard error is zero if no pair is discordant. The interval adds
half a pair to each of the four cells of the table of pairs (two problems in all), which
covers well for few problems, too.

**Several comparisons.** `holm` adjusts p-values so that the probability of one or more
false rejections among all of them is at most the level.

References: McNemar 1947, Psychometrika 12; Agresti and Min 2005, Statistics in Medicine
24, the interval; Holm 1979, Scand. J. Statist. 6.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from scipy import special

from tsi.errors import ConfigurationError
from tsi.experiments.statistics.sign_flip_test import sign_flip_p_value
from tsi.experiments.statistics.wilson_interval import Interval


class PairedDifference(NamedTuple):
    """Accuracy of A minus accuracy of B on the same problems.

    Args:
        difference: mean over problems and seeds, of expected correctness if given.
        error: its standard error, clustered by problem; NaN for a single problem, or
            if no pair is discordant.
        interval: of the difference.
        only_a: pairs of runs where only A is right.
        only_b: pairs of runs where only B is right.
        num_pairs: all pairs, problems times seeds.
        mean_square: of the differences by problem; with one seed the share of
            discordant pairs.
        p_value: of the exact test that A and B are interchangeable on each problem; of
            Student's t test if expected values are not integers.
    """

    difference: float
    error: float
    interval: Interval
    only_a: int
    only_b: int
    num_pairs: int
    mean_square: float
    p_value: float


def paired_difference(
    correct_a: Shaped[np.ndarray, "P S"],
    correct_b: Shaped[np.ndarray, "Q R"],
    level: float = 0.95,
    *,
    expected_a: Float[np.ndarray, "P S"] | None = None,
    expected_b: Float[np.ndarray, "Q R"] | None = None,
) -> PairedDifference:
    """Compare two methods on the same problems and seeds.

    Args:
        correct_a: 0 or 1 for each problem and seed.
        correct_b: the same for B; one of the two may have a single seed, which then
            is compared with each seed of the other.
        level: coverage of the interval.
        expected_a: expected correctness of A, for the difference and its error; the
            correctness if None.
        expected_b: the same for B.

    Raises:
        ConfigurationError: the problems differ, or both have several seeds that differ
            in number.
    """
    a, b = np.asarray(correct_a, np.int64), np.asarray(correct_b, np.int64)
    num_seeds = {a.shape[1], b.shape[1]} - {1}
    if len(a) != len(b) or len(num_seeds) > 1:
        raise ConfigurationError(
            f"A paired comparison needs the same problems and seeds, got {a.shape} and "
            f"{b.shape}; finish the runs first."
        )
    signs = a - b
    means_a = a if expected_a is None else np.asarray(expected_a, np.float64)
    means_b = b if expected_b is None else np.asarray(expected_b, np.float64)
    differences = means_a - means_b
    num_problems = len(signs)
    by_problem = differences.mean(axis=1)
    mean, square = float(by_problem.mean()), float((by_problem**2).mean())
    has_error = num_problems > 1 and square > 0
    error = by_problem.std(ddof=1) / math.sqrt(num_problems) if has_error else math.nan
    return PairedDifference(
        mean,
        float(error),
        _interval(mean, square, num_problems, level),
        int((signs > 0).sum()),
        int((signs < 0).sum()),
        signs.size,
        square,
        _p_value(differences),
    )


def _p_value(differences: Shaped[np.ndarray, "P S"]) -> float:
    totals = differences.sum(axis=1)
    whole = np.round(totals).astype(np.int64)
    # Expected values of whole numbers differ from them only by rounding.
    if np.allclose(totals, whole, rtol=0, atol=1e-6):
        return sign_flip_p_value(whole)
    number = len(totals)
    if number < 2 or np.ptp(totals) == 0:
        return 1.0
    statistic = totals.mean() / (totals.std(ddof=1) / np.sqrt(number))
    return float(2.0 * special.stdtr(number - 1, -abs(statistic)))


def _interval(mean: float, square: float, num_problems: int, level: float) -> Interval:
    """Agresti and Min's: two more problems, of total 0 and sum of squares 1."""
    number = num_problems + 2
    centre = mean * num_problems / number
    variance = (square * num_problems + 1) / number - centre**2
    half = float(special.ndtri(0.5 + level / 2)) * math.sqrt(variance / number)
    return Interval(max(centre - half, -1.0), min(centre + half, 1.0))
