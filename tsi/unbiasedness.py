"""Whether weighted particles estimate the right measure, tested over many runs.

Self-normalised estimates are biased at every finite N, so a posterior read off them is
no test. What a correct sampler estimates without bias is the unnormalised measure: for
every function phi of a path,

    E[ Z_hat * (1/N) sum_i w_i phi(x^i) ] = Z * E_posterior[phi],

with Z_hat = exp(log_evidence) and mean-one weights w. With phi = 1 this is the evidence
(a z score); with phi the indicators of groups of paths it holds the posterior too, and
the vector of errors is judged by its own covariance: n d' S^-1 d is chi-square.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tsi.linear_gaussian import LinearGaussianTruth
from tsi.tabular import TabularTarget, TabularTruth

EXACT = 1e-4
"""Relative error allowed where an estimate does not vary: float32 rounding."""

SMALLEST_GROUP = 0.02
"""Probability of a group of paths, so that every group is met often enough."""


class MeasureTest(NamedTuple):
    """The outcome.

    Attributes:
        evidence: the mean estimate of Z over the runs.
        truth: Z.
        z: standard errors between them.
        p_value: of the chi-square test; 0 if an impossible path has weight.
        degrees: degrees of freedom of that test.
    """

    evidence: float
    truth: float
    z: float
    p_value: float
    degrees: int


def _z_score(estimates: np.ndarray, truth: float) -> float:
    error = float(estimates.mean() - truth)
    standard_error = float(estimates.std(ddof=1)) / np.sqrt(len(estimates))
    # Some estimates do not vary (self-consistency's evidence is one): their error is
    # rounding or wrong, and dividing by a standard error of nothing says neither.
    if standard_error <= EXACT / 100 * abs(truth):
        return 0.0 if abs(error) <= EXACT * abs(truth) else float(np.inf)
    return error / standard_error


def _chi_square(estimates: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    """p value and degrees of freedom for estimates [n, G] having mean truth [G]."""
    scaled = estimates / truth
    error = scaled.mean(0) - 1.0
    covariance = np.atleast_2d(np.cov(scaled, rowvar=False)) / len(scaled)
    variances, directions = np.linalg.eigh(covariance)
    error = directions.T @ error
    varies = variances > (EXACT / 100) ** 2
    if np.any(np.abs(error[~varies]) > EXACT):
        return 0.0, int(varies.sum())
    statistic = float(np.sum(error[varies] ** 2 / variances[varies]))
    degrees = int(varies.sum())
    return (float(stats.chi2.sf(statistic, degrees)) if degrees else 1.0), degrees


def path_groups(truth: TabularTruth) -> np.ndarray:
    """A group number for each path, [M]; -1 for paths of posterior probability zero.

    Likely paths stand alone; unlikely ones, under the policy or the posterior, share.
    """
    prior = np.exp(truth.log_prob)
    groups = np.full(len(prior), -1)
    group, policy_mass, posterior_mass = 0, 0.0, 0.0
    for path in np.argsort(-truth.posterior, kind="stable"):
        if truth.posterior[path] == 0.0:
            continue
        groups[path] = group
        policy_mass += prior[path]
        posterior_mass += truth.posterior[path]
        if min(policy_mass, posterior_mass) >= SMALLEST_GROUP:
            group, policy_mass, posterior_mass = group + 1, 0.0, 0.0
    # What is left over is too little for a group of its own.
    return np.minimum(groups, max(group - 1, 0))


def judge_tabular(
    target: TabularTarget,
    truth: TabularTruth,
    symbols: Any,
    log_weights: Any,
    log_evidence: Any,
) -> MeasureTest:
    """Judge runs on a tabular target.

    Args:
        target: the target.
        truth: its truth under the sampler's path weight.
        symbols: paths of all runs, [R, N, T].
        log_weights: [R, N], mean weight one.
        log_evidence: [R].
    """
    evidence = np.exp(np.asarray(log_evidence, np.float64))
    mass = np.exp(np.asarray(log_weights, np.float64)) / log_weights.shape[1]
    mass = mass * evidence[:, None]
    evidence_truth = float(np.exp(truth.log_evidence))
    if evidence_truth == 0.0:
        right = not evidence.any()
        return MeasureTest(evidence.mean(), 0.0, 0.0 if right else np.inf, right, 0)

    codes = target.path_codes(truth.symbols)
    order = np.argsort(codes)
    group_of_path = path_groups(truth)
    num_groups = group_of_path.max() + 1
    found = target.path_codes(symbols)
    place = order[np.minimum(np.searchsorted(codes[order], found), len(codes) - 1)]
    # An unfinished path, or one the policy cannot write, is none of the listed ones.
    groups = np.where(codes[place] == found, group_of_path[place], -1)
    runs = np.arange(len(evidence))[:, None]
    possible = groups >= 0
    flat = (runs * num_groups + groups)[possible]
    estimates = np.bincount(
        flat, weights=mass[possible], minlength=len(evidence) * num_groups
    ).reshape(-1, num_groups)

    expected = np.bincount(
        group_of_path[group_of_path >= 0],
        weights=truth.posterior[group_of_path >= 0],
        minlength=num_groups,
    )
    p_value, degrees = _chi_square(estimates, evidence_truth * expected)
    if mass[~possible].any():
        p_value = 0.0
    z = _z_score(evidence, evidence_truth)
    return MeasureTest(float(evidence.mean()), evidence_truth, z, p_value, degrees)


def judge_linear_gaussian(
    truth: LinearGaussianTruth, x: Any, log_weights: Any, log_evidence: Any
) -> MeasureTest:
    """Judge runs on a linear-Gaussian target by evidence, mean and second moment.

    Args:
        truth: the target's truth under the sampler's path weight.
        x: last states of all runs, [R, N].
        log_weights: [R, N], mean weight one.
        log_evidence: [R].
    """
    evidence = np.exp(np.asarray(log_evidence, np.float64))
    mass = np.exp(np.asarray(log_weights, np.float64)) / log_weights.shape[1]
    mass = mass * evidence[:, None]
    # Shifted by two so that no expectation is zero: errors are judged relatively.
    y = np.asarray(x, np.float64) - truth.mean + 2.0 * np.sqrt(truth.variance)
    features = np.stack([mass, mass * y, mass * y**2], axis=-1).sum(1)
    evidence_truth = float(np.exp(truth.log_evidence))
    expected = np.array([1.0, 2.0 * np.sqrt(truth.variance), 5.0 * truth.variance])
    p_value, degrees = _chi_square(features, evidence_truth * expected)
    z = _z_score(evidence, evidence_truth)
    return MeasureTest(float(evidence.mean()), evidence_truth, z, p_value, degrees)
