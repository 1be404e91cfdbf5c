r"""Whether the probability given to the selected answer is that of being right.

Each run gives its selected answer a probability p, and the answer is right (y = 1) or
not. Runs of one problem are one cluster: bootstrap replicates draw problems.

- *Reliability curve*: mean p and mean y in bins of equal width. *ECE* is the mean
  |mean y - mean p| over runs, by their bins. Noise within bins makes it positive even
  for a calibrated method, so three numbers are reported: the ECE, its mean if every y
  were drawn with probability p, and an interval.
- *RMS error*, debiased: the mean over runs of (mean y - mean p)^2 by bins, minus the
  variance of mean y within its bin. It is unbiased for the squared error of the binned
  curve if runs are independent, can be negative, and is shown as a signed root.
- *Brier score*: mean (p - y)^2. *Log score*: mean log probability of what happened, y
  or not y. N particles cannot tell a probability of 0 from 1 / (2 N), so p is clipped
  to [1 / (2 N), 1 - 1 / (2 N)], only for the log score.
- *Log score of the right answer*: mean log of the posterior probability of all right
  answers, kept at 1 / (2 N) or above. It is a proper score of the whole posterior.
- *Selective accuracy*: accuracy of the most confident fraction of runs, with ties in
  random order; its mean over all fractions is the area under the curve.

References: Guo et al. 2017, arXiv 1706.04599, ECE; Kumar, Liang and Ma 2019, arXiv
1909.10155, the debiased error; Bröcker and Smith 2007, Weather and Forecasting 22,
consistency resampling; Geifman and El-Yaniv 2017, arXiv 1705.08500, selection.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.experiments.statistics.bootstrap import cluster_draws
from tsi.experiments.statistics.wilson_interval import Interval, wilson_interval

NUM_BINS = 10


class Bin(NamedTuple):
    """One bin of a reliability curve.

    Args:
        size: number of runs in the bin.
        probability: their mean probability.
        accuracy: the share of them that is right.
        interval: Wilson's, as if runs were independent.
    """

    size: int
    probability: float
    accuracy: float
    interval: Interval


class Calibration(NamedTuple):
    """Calibration and scores of the probability of the selected answer.

    Args:
        bins: those with runs in them.
        ece: expected calibration error.
        ece_if_calibrated: its mean if every probability were right.
        ece_interval: 95 % bootstrap interval, clustered by problem.
        rms_error: signed root of the debiased squared error.
        brier: mean squared error.
        log_score: mean log probability of the outcome, in nats; larger is better.
        right_log_score: mean log posterior probability of right answers, in nats; NaN
            if it is not known.
        selective: accuracy of the most confident 25, 50 and 75 % of runs.
        selective_area: mean accuracy over all fractions.
    """

    bins: list[Bin]
    ece: float
    ece_if_calibrated: float
    ece_interval: Interval
    rms_error: float
    brier: float
    log_score: float
    right_log_score: float
    selective: tuple[float, float, float]
    selective_area: float


def calibration(
    probabilities: Float[np.ndarray, "P S"],
    correct: Bool[np.ndarray, "P S"],
    num_particles: int,
    *,
    right_probabilities: Float[np.ndarray, "P S"] | None = None,
    num_bins: int = NUM_BINS,
    num_replicates: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Assess the probabilities of selected answers.

    Args:
        probabilities: of the selected answer for each problem and seed; 0 if there is
            none.
        correct: whether it is right.
        num_particles: N, which bounds the probabilities of the log score.
        right_probabilities: posterior probability of all right answers.
        num_bins: bins of equal width.
        num_replicates: bootstrap replicates.
        seed: of bootstrap and consistency resampling.
    """
    p, y = probabilities.ravel(), np.asarray(correct, np.float64).ravel()
    places = bin_places(p, num_bins)
    draws = cluster_draws(seed, num_replicates, len(correct))
    # Runs by the replicate's count of their problem.
    counts = np.repeat(draws, correct.shape[1], axis=1)
    replicates = binned_error(p, y[None], places, counts, num_bins)
    outcomes = np.random.default_rng(seed).random((num_replicates, p.size)) < p
    calibrated_errors = binned_error(
        p, outcomes * 1.0, places, np.ones((1, p.size)), num_bins
    )
    curve = _selective_curve(p, y)
    return Calibration(
        _bins(p, y, places, num_bins),
        float(binned_error(p, y[None], places, np.ones((1, p.size)), num_bins)[0]),
        float(calibrated_errors.mean()),
        Interval(*map(float, np.percentile(replicates, [2.5, 97.5]))),
        _rms_error(p, y, places, num_bins),
        brier_score(p, y),
        log_score(p, y, num_particles),
        right_log_score(right_probabilities, num_particles),
        (_value_at(curve, 0.25), _value_at(curve, 0.5), _value_at(curve, 0.75)),
        float(curve.mean()),
    )


def bin_places(
    probabilities: Float[np.ndarray, "n"], num_bins: int
) -> Int[np.ndarray, "n"]:
    """Index of each probability's bin; one is in the last bin."""
    return np.minimum((probabilities * num_bins).astype(int), num_bins - 1)


def binned_error(
    probabilities: Float[np.ndarray, "n"],
    outcomes: Float[np.ndarray, "#R n"],
    places: Int[np.ndarray, "n"],
    counts: Float[np.ndarray, "#R n"],
    num_bins: int,
) -> Float[np.ndarray, "R"]:
    """ECE of each replicate: sum over bins of |sum of (y - p)|, over runs.

    Args:
        probabilities: of each run.
        outcomes: 0 or 1 for each run, in each replicate.
        places: bin of each run.
        counts: how often each run is in each replicate.
        num_bins: number of bins.
    """
    in_bin = (places[:, None] == np.arange(num_bins)) * 1.0
    gaps = (counts * (outcomes - probabilities)) @ in_bin
    return np.abs(gaps).sum(axis=1) / counts.sum(axis=1)


def _bins(p: np.ndarray, y: np.ndarray, places: np.ndarray, num_bins: int) -> list[Bin]:
    bins = []
    for place in range(num_bins):
        is_here = places == place
        count = int(is_here.sum())
        if count:
            share = float(y[is_here].mean())
            interval = wilson_interval(share, count)
            bins.append(Bin(count, float(p[is_here].mean()), share, interval))
    return bins


def _rms_error(
    p: np.ndarray, y: np.ndarray, places: np.ndarray, num_bins: int
) -> float:
    total, num_used = 0.0, 0
    for place in range(num_bins):
        is_here = places == place
        count = int(is_here.sum())
        # A variance needs two runs; bins of one are left out.
        if count > 1:
            gap = y[is_here] - p[is_here]
            total += count * float(gap.mean() ** 2 - gap.var(ddof=1) / count)
            num_used += count
    if not num_used:
        return math.nan
    return math.copysign(math.sqrt(abs(total / num_used)), total)


def brier_score(p: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
    """Mean squared error of the probabilities; smaller is better."""
    return float(np.mean((p - y) ** 2))


def log_score(
    p: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], num_particles: int
) -> float:
    """Mean log probability of the outcomes, in nats; larger is better.

    Args:
        p: probability of being right.
        y: 1 if right.
        num_particles: N; p is kept within [1 / (2 N), 1 - 1 / (2 N)].
    """
    margin = 1 / (2 * num_particles)
    p = np.clip(p, margin, 1 - margin)
    return float(np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def right_log_score(
    probabilities: Float[np.ndarray, "P S"] | None, num_particles: int
) -> float:
    """Mean log probability of right answers, in nats; larger is better.

    Args:
        probabilities: of all right answers; NaN where it is not known.
        num_particles: N; a probability counts as 1 / (2 N) if it is smaller.
    """
    if probabilities is None:
        return math.nan
    return float(np.log(np.maximum(probabilities, 1 / (2 * num_particles))).mean())


def selective_accuracy(
    confidences: Float[np.ndarray, "n"],
    correct: Float[np.ndarray, "n"],
    fractions: Sequence[float],
) -> list[float]:
    """Accuracy of the most confident fractions of runs; ties are in random order.

    Args:
        confidences: of each run.
        correct: 0 or 1 for each run.
        fractions: in (0, 1]; rounded up to whole runs.
    """
    curve = _selective_curve(confidences, correct)
    return [_value_at(curve, fraction) for fraction in fractions]


def _selective_curve(p: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "n"]:
    """Expected accuracy of the k most confident runs, for k from 1."""
    order = np.argsort(-p, kind="stable")
    _, groups = np.unique(-p[order], return_inverse=True)
    # In random order each member of a tie is as right as their mean.
    means = np.bincount(groups, y[order]) / np.bincount(groups)
    return np.cumsum(means[groups]) / np.arange(1, p.size + 1)


def _value_at(curve: np.ndarray, fraction: float) -> float:
    return float(curve[max(math.ceil(fraction * curve.size - 1e-9), 1) - 1])
