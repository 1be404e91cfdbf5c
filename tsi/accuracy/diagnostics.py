"""What a run says about its own error, put together from its weights and genealogy.

On the host, in numpy: it is a few sums for each problem, over arrays whose shapes
change from run to run.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.accuracy.answer_errors import answer_errors
from tsi.accuracy.degeneracy import common_past, lineages, unique_ancestors
from tsi.accuracy.evidence_variance import variance_of_families
from tsi.accuracy.pareto import pareto_k
from tsi.explorer import Explorer
from tsi.sampler import Sampler


def normalised(log_weights: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Weights that sum to one; equal ones if all are zero."""
    log_weights = np.asarray(log_weights, np.float64)
    top = log_weights.max()
    if not np.isfinite(top):
        return np.full(log_weights.size, 1 / log_weights.size)
    weights = np.exp(log_weights - top)
    return weights / weights.sum()


class Diagnosis(NamedTuple):
    """The fields of `tsi.results.result.Result` that tell of errors; see there."""

    log_evidence_variance: float
    answer_errors: dict[str, float]
    pareto_k: float
    unique_ancestors: Int[np.ndarray, "T"]


def diagnose(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    log_evidence: float,
    ancestors: Int[np.ndarray, "T N"],
    resampled: Bool[np.ndarray, "T"],
    *,
    has_evidence: bool = True,
    has_errors: bool = True,
) -> Diagnosis:
    """Errors of the evidence and of the answers, tail of the weights, degeneracy.

    Args:
        answers: canonical answers.
        log_weights: of the final particles, in any normalisation.
        log_evidence: of the run; if it is -inf, weights say nothing and errors are NaN.
        ancestors: parent of each particle at each step.
        resampled: whether the step began with a resampling.
        has_evidence: False where the log evidence estimates nothing, or where particles
            resample in islands, for which its variance is not known.
        has_errors: False for a method without a target: its particles were chosen by
            rank, and how they spread says nothing of how far off their shares are.
    """
    shares = normalised(log_weights)
    eves = ancestors[0][lineages(ancestors)[0]]
    num_resamplings = int(np.sum(resampled))
    unknown = math.isinf(log_evidence) or not has_errors
    errors = answer_errors(answers, shares, eves, num_resamplings)
    variance = math.nan
    if has_evidence and not unknown:
        families = np.bincount(eves, weights=shares, minlength=shares.size)
        variance = float(variance_of_families(families, num_resamplings))
    return Diagnosis(
        log_evidence_variance=variance,
        answer_errors=dict.fromkeys(errors, math.nan) if unknown else errors,
        pareto_k=math.nan if unknown else pareto_k(log_weights),
        unique_ancestors=unique_ancestors(ancestors),
    )


def diagnose_store(
    explorer: Explorer,
    answers: Sequence[str | None],
    state: Any,
    step_texts: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """The same of an explorer's members, whose common past is their common text.

    Members with one first step are one family, and so are copies of one solution.
    Searches and chains have no errors: ranks are no sample, and how much the states of
    a chain depend on each other their weights do not tell.

    Args:
        explorer: what ran.
        answers: canonical answers.
        state: the explorer's last.
        step_texts: the steps of each member.
    """
    log_weights = np.asarray(state.log_weights)
    past = common_past(step_texts)
    families = past[min(1, len(past) - 1)]
    errors = answer_errors(answers, normalised(log_weights), families, 0)
    unknown = math.isinf(float(state.log_evidence))
    unknown = unknown or explorer.chain or explorer.path_log_weight is None
    with np.errstate(invalid="ignore"):  # 0 of 0 moves is NaN, as it should be
        accepts = explorer.acceptance
        acceptance_rate = math.nan if accepts is None else float(accepts(state))
    return {
        "answer_errors": dict.fromkeys(errors, math.nan) if unknown else errors,
        "pareto_k": math.nan if unknown else pareto_k(log_weights),
        "unique_ancestors": unique_ancestors(past),
        "acceptance_rate": acceptance_rate,
    }


def diagnose_run(
    sampler: Sampler, state: Any, infos: Any, answers: Sequence[str | None]
) -> dict[str, Any]:
    """The optional fields of a result, as far as a sampler's infos have what they need.

    Args:
        sampler: what ran.
        state: its last state.
        infos: of the steps taken, stacked, in numpy; those without `ancestors` give
            nothing.
        answers: canonical answers of the final particles.
    """
    ancestors = getattr(infos, "ancestors", None)
    if ancestors is None:
        return {}
    moved = (ancestors != np.arange(ancestors.shape[1])).any(axis=1)
    islands = np.size(getattr(state, "resampled", False))
    resampled = getattr(infos, "resampled", moved)
    diagnosis = diagnose(
        answers,
        np.asarray(state.log_weights),
        float(state.log_evidence),
        ancestors,
        resampled,
        has_evidence=islands == 1,
        has_errors=sampler.path_log_weight is not None,
    )
    log_potentials = getattr(infos, "log_potentials", None)
    return {
        **diagnosis._asdict(),
        "resampled": resampled,
        "step_rewards": None if log_potentials is None else rewards_of(log_potentials),
    }


def rewards_of(log_odds: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Rewards r of log-odds; NaN for log-odds of NaN or +inf, which are no weight."""
    log_odds = np.where(log_odds == np.inf, np.nan, log_odds.astype(np.float64))
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-log_odds))
