"""Error estimates of a run, from its weights and genealogy.

They are computed on the host in numpy, since they are a few sums per problem, over
arrays whose shapes change from run to run.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tsi.accuracy.answer_errors import answer_errors
from tsi.accuracy.degeneracy import lineages
from tsi.accuracy.evidence_variance import variance_of_families
from tsi.accuracy.pareto import pareto_k


def probabilities_of(log_weights: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Weights that sum to one; equal weights if all are zero."""
    log_weights = np.asarray(log_weights, np.float64)
    top = log_weights.max()
    if not np.isfinite(top):
        return np.full(log_weights.size, 1 / log_weights.size)
    weights = np.exp(log_weights - top)
    return weights / weights.sum()


class Diagnosis(NamedTuple):
    """Estimates of the errors of a run; see `tsi.results.parts`.

    Attributes:
        log_evidence_variance: Var(Z_hat) / Z_hat^2.
        answer_errors: standard error of each answer's posterior probability.
        pareto_k: tail shape of the final weights.
    """

    log_evidence_variance: float
    answer_errors: dict[str, float]
    pareto_k: float


def diagnose(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    log_evidence: float,
    families: Int[np.ndarray, "N"],
    num_resamplings: int,
    *,
    has_evidence: bool = True,
    has_errors: bool = True,
) -> Diagnosis:
    """Errors of the evidence and of the answers, and tail of the weights.

    Args:
        answers: canonical answers.
        log_weights: of the final particles, in any normalisation.
        log_evidence: of the run; if it is -inf, the errors are NaN.
        families: a number per particle from 0 to N - 1; particles with the same number
            depend on each other. See `eves` and `prefix_families`.
        num_resamplings: R, number of resamplings of the run.
        has_evidence: False if the log evidence estimates nothing, or if particles
            resample in islands or come from a store, for which its variance is not
            known.
        has_errors: False if the particles are not a weighted sample: the spread of
            ranks does not estimate an error, and the dependence between states of a
            chain cannot be estimated from their weights.
    """
    shares = probabilities_of(log_weights)
    unknown = math.isinf(log_evidence) or not has_errors
    errors = answer_errors(answers, shares, families, num_resamplings)
    variance = math.nan
    if has_evidence and not unknown:
        masses = np.bincount(families, weights=shares, minlength=shares.size)
        variance = float(variance_of_families(masses, num_resamplings))
    return Diagnosis(
        log_evidence_variance=variance,
        answer_errors=dict.fromkeys(errors, math.nan) if unknown else errors,
        pareto_k=math.nan if unknown else pareto_k(log_weights),
    )


def eves(ancestors: Int[np.ndarray, "T N"]) -> Int[np.ndarray, "N"]:
    """First ancestor of each final particle of a run that resamples."""
    return ancestors[0][lineages(ancestors)[0]]


def prefix_families(past: Int[np.ndarray, "T N"]) -> Int[np.ndarray, "N"]:
    """Families of an explorer's members: members with the same first step.

    Copies of a solution of one step are therefore one family as well.

    Args:
        past: common past of the members; see `common_past`.
    """
    return past[min(1, len(past) - 1)]


def rewards_of(log_odds: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Rewards r of log-odds; NaN for invalid log-odds of NaN or +inf."""
    log_odds = np.where(log_odds == np.inf, np.nan, log_odds.astype(np.float64))
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-log_odds))
