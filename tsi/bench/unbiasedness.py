"""Whether weighted particles estimate the right measure, tested over many runs.

Self-normalised estimates are biased at every finite N, so they cannot be tested for
bias. A correct sampler estimates the unnormalised measure without bias: for every
function phi of a path,

    E[ Z_hat * (1/N) sum_i w_i phi(x^i) ] = Z * E_posterior[phi],

with Z_hat = exp(log_evidence) and weights w of mean one. With phi = 1 this is the
evidence, tested by a z score. With phi the indicators of groups of paths it tests the
posterior as well: for the vector d of errors with covariance S, n d' S^-1 d is
chi-square. Everything is divided by Z first, which may be outside the range of floats.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from tsi.targets.linear_gaussian import LinearGaussianTruth
from tsi.targets.tabular import TabularTarget, TabularTruth

EXACT = 1e-4
"""Allowed relative error of an estimate that does not vary: float32 rounding."""

SMALLEST_GROUP = 0.02
"""The least probability of a group of paths, so that every group occurs often."""


class MeasureTest(NamedTuple):
    """The outcome of a test of the evidence and the posterior.

    Attributes:
        ratio: the mean estimate of Z over the runs, divided by Z; not divided if Z is
            zero.
        log_truth: log Z.
        standard_error: standard error of the ratio.
        z: difference of the ratio from one, in standard errors.
        p_value: p value of the chi-square test; 0 if an impossible path has weight, NaN
            if only the evidence is known.
        degrees: degrees of freedom of that test.
    """

    ratio: float
    log_truth: float
    standard_error: float
    z: float
    p_value: float
    degrees: int

    @property
    def truth(self) -> float:
        """Z; zero or infinite if it is outside the range of float64."""
        return float(np.exp(self.log_truth))


def exact_z(error: float, standard_error: float) -> float:
    """A relative error in standard errors; the error may be exactly zero.

    Some estimates do not vary (self-consistency's evidence is always 1). Their standard
    error is zero, so the error is compared with the rounding error instead.
    """
    if standard_error <= EXACT / 100:
        return 0.0 if abs(error) <= EXACT else float(np.inf)
    return error / standard_error


def chi_square(estimates: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    """p value and degrees of freedom for estimates [n, G] having mean truth [G]."""
    scaled = estimates / truth
    if not np.isfinite(scaled).all():
        return 0.0, 0
    error = scaled.mean(0) - 1.0
    covariance = np.atleast_2d(np.cov(scaled, rowvar=False)) / len(scaled)
    variances, directions = np.linalg.eigh(covariance)
    error = directions.T @ error
    varies = variances > (EXACT / 100) ** 2
    if np.any(np.abs(error[~varies]) > EXACT):
        return 0.0, int(varies.sum())
    statistic = float(np.sum(error[varies] ** 2 / variances[varies]))
    degrees = int(varies.sum())
    return (float(special.chdtrc(degrees, statistic)) if degrees else 1.0), degrees


def path_groups(truth: TabularTruth) -> np.ndarray:
    """A group number for each path, [M]; -1 for paths of posterior probability zero.

    Likely paths have a group each. Unlikely ones, under the policy or the posterior,
    share a group.
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
    # The remaining paths join the last group.
    return np.minimum(groups, max(group - 1, 0))


def _masses(
    log_weights: Any, log_evidence: Any, log_truth: float
) -> tuple[np.ndarray, np.ndarray]:
    """Z_hat / Z of each run, [R], and each particle's part of it, [R, N]."""
    shift = log_truth if np.isfinite(log_truth) else 0.0
    with np.errstate(over="ignore"):
        evidence = np.exp(np.asarray(log_evidence, np.float64) - shift)
        shares = np.exp(np.asarray(log_weights, np.float64)) / log_weights.shape[1]
        # Zero times an infinite evidence would be NaN.
        return evidence, np.where(shares == 0.0, 0.0, shares * evidence[:, None])


def _judge(
    evidence: np.ndarray, log_truth: float, p_value: float, degrees: int
) -> MeasureTest:
    ratio = float(evidence.mean())
    standard_error = float(evidence.std(ddof=1)) / np.sqrt(len(evidence))
    z = exact_z(ratio - 1.0, standard_error)
    return MeasureTest(ratio, log_truth, standard_error, z, p_value, degrees)


def judge_zero(log_evidence: Any) -> MeasureTest:
    """Test runs on a target of evidence zero: every estimate must be zero."""
    evidence = np.exp(np.asarray(log_evidence, np.float64))
    right = not evidence.any()
    z, ratio = 0.0 if right else np.inf, float(evidence.mean())
    return MeasureTest(ratio, -np.inf, 0.0, z, float(right), 0)


def judge_tabular(
    target: TabularTarget,
    truth: TabularTruth,
    symbols: Any,
    log_weights: Any,
    log_evidence: Any,
) -> MeasureTest:
    """Test runs on a tabular target.

    Args:
        target: the target.
        truth: its truth under the sampler's path weight.
        symbols: paths of all runs, [R, N, T].
        log_weights: [R, N], mean weight one.
        log_evidence: [R].
    """
    if truth.log_evidence == -np.inf:
        return judge_zero(log_evidence)
    if not np.isfinite(truth.log_evidence):
        # No run can match an evidence that is infinite or NaN.
        return MeasureTest(np.nan, truth.log_evidence, 0.0, np.inf, 0.0, 0)
    evidence, mass = _masses(log_weights, log_evidence, truth.log_evidence)
    codes = target.path_codes(truth.symbols)
    order = np.argsort(codes)
    group_of_path = path_groups(truth)
    num_groups = group_of_path.max() + 1
    path_codes = target.path_codes(symbols)
    place = order[np.minimum(np.searchsorted(codes[order], path_codes), len(codes) - 1)]
    # Unfinished paths, and paths of probability zero, are not among these.
    groups = np.where(codes[place] == path_codes, group_of_path[place], -1)
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
    p_value, degrees = chi_square(estimates, expected)
    if (mass[~possible] > 0.0).any():
        p_value = 0.0
    return _judge(evidence, truth.log_evidence, p_value, degrees)


def judge_linear_gaussian(
    truth: LinearGaussianTruth, x: Any, log_weights: Any, log_evidence: Any
) -> MeasureTest:
    """Test runs on a linear-Gaussian target by evidence, mean and second moment.

    Args:
        truth: the target's truth under the sampler's path weight.
        x: last states of all runs, [R, N].
        log_weights: [R, N], mean weight one.
        log_evidence: [R].
    """
    # Shifted so that no expectation is zero, since relative errors are judged.
    y = np.asarray(x, np.float64) - truth.mean + 2.0 * np.sqrt(truth.variance)
    features = np.stack([np.ones_like(y), y, y**2], axis=-1)
    means = np.array([1.0, 2.0 * np.sqrt(truth.variance), 5.0 * truth.variance])
    return judge_features(
        truth.log_evidence, features, means, log_weights, log_evidence
    )


def judge_features(
    log_truth: float, features: Any, means: Any, log_weights: Any, log_evidence: Any
) -> MeasureTest:
    """Test runs by the evidence and the posterior means of some functions.

    Args:
        log_truth: log Z.
        features: the functions of every particle of all runs, [R, N, G], or None.
        means: their posterior means, [G], none of them zero (errors are relative).
        log_weights: [R, N], mean weight one.
        log_evidence: [R].
    """
    if log_truth == -np.inf:
        return judge_zero(log_evidence)
    evidence, mass = _masses(log_weights, log_evidence, log_truth)
    if features is None:
        return _judge(evidence, log_truth, np.nan, 0)
    estimates = np.sum(mass[..., None] * np.asarray(features, np.float64), axis=1)
    p_value, degrees = chi_square(estimates, np.asarray(means, np.float64))
    return _judge(evidence, log_truth, p_value, degrees)
