"""Merge independent runs on one problem into one result.

Independent runs are islands. The mean of their evidence estimates is unbiased, and the
particles of each run are weighted by its evidence. The variance between runs gives the
standard error of the mean.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from tsi.accuracy.diagnostics import Diagnosis
from tsi.accuracy.pareto import pareto_k
from tsi.accuracy.replicates import evidence_from_replicates
from tsi.results.build import build_result
from tsi.results.ledger import add_ledgers, join_slots
from tsi.results.parts import Steps, join_particles
from tsi.results.result import Result
from tsi.weights import weight_dtype


def merge_rounds(rounds: Sequence[Result]) -> Result:
    """Merge several independent runs on one problem.

    Without an evidence estimate, runs have equal weights. If the particles of a run are
    not a weighted sample, as for chains, neither are the merged particles.

    Args:
        rounds: results of one sampler, with equal numbers of particles.
    """
    estimand = rounds[0].estimand
    log_evidences = [r.log_evidence if estimand.has_target else 0.0 for r in rounds]
    evidence = evidence_from_replicates(np.array(log_evidences))
    log_weights = np.concatenate(
        [
            np.asarray(r.log_weights, np.float64) + log_evidence
            for r, log_evidence in zip(rounds, log_evidences, strict=True)
        ]
    )
    is_lost = math.isinf(evidence.log_mean)
    log_weights = np.zeros_like(log_weights) if is_lost else log_weights
    log_weights -= 0.0 if is_lost else evidence.log_mean
    squares = np.exp(2 * log_weights).sum()
    ess = np.exp(log_weights).sum() ** 2 / squares if squares else 0.0
    is_weighted = estimand.is_weighted_sample
    particles = join_particles([r.particles for r in rounds])
    diagnostics = [r.diagnostics for r in rounds]
    return build_result(
        rounds[0].problem_id,
        estimand,
        particles._replace(log_weights=log_weights),
        Steps(
            ess=np.array([ess if is_weighted else math.nan], weight_dtype()),
            ancestors=join_genealogies([r.steps.ancestors for r in rounds]),
        ),
        Diagnosis(
            evidence.standard_error**2,
            answer_errors_between(rounds),
            pareto_k(log_weights) if is_weighted and not is_lost else math.nan,
        ),
        log_evidence=evidence.log_mean,
        num_recoveries=sum(d.num_recoveries for d in diagnostics),
        num_invalid=sum(d.num_invalid for d in diagnostics),
        num_truncated=sum(d.num_truncated for d in diagnostics),
        acceptance_rate=float(np.mean([d.acceptance_rate for d in diagnostics])),
        ledger=add_ledgers(*(r.ledger for r in rounds)),
        slots=join_slots([r.slots for r in rounds]),
    )


def join_genealogies(
    genealogies: Sequence[Int[np.ndarray, "_t _n"]],
) -> Int[np.ndarray, "T N"]:
    """Concatenate the genealogies of independent runs.

    The particles of a run that ended early keep their indices.
    """
    longest = max(len(ancestors) for ancestors in genealogies)
    columns, start = [], 0
    for ancestors in genealogies:
        width = ancestors.shape[1]
        stay = np.arange(width)
        rest = np.tile(stay, (longest - len(ancestors), 1))
        columns.append(
            np.concatenate([ancestors, rest.astype(ancestors.dtype)]) + start
        )
        start += width
    return np.concatenate(columns, axis=1)


def answer_shares(
    rounds: Sequence[Result],
) -> tuple[list[str], Float[np.ndarray, "R A"], Float[np.ndarray, "R"]]:
    """The evidence of each round, divided among the answers.

    Returns:
        The answers; masses [R, A] of the answers; and total masses [R] of solutions
        with an answer. Masses are relative to the largest evidence.
    """
    evidences = np.array([r.log_evidence for r in rounds], np.float64)
    top = evidences.max()
    scale = np.exp(evidences - top) if np.isfinite(top) else np.zeros(len(rounds))
    answers = sorted({a for r in rounds for a in r.answers if a is not None})
    masses = np.zeros((len(rounds), len(answers)))
    for row, result, z in zip(masses, rounds, scale, strict=True):
        weights = np.exp(np.asarray(result.log_weights, np.float64))
        for answer, weight in zip(result.answers, weights, strict=True):
            if answer is not None:
                row[answers.index(answer)] += z * weight / len(weights)
    return answers, masses, masses.sum(axis=1)


def answer_errors_between(rounds: Sequence[Result]) -> dict[str, float]:
    """Standard error of each answer's probability, from independent rounds.

    The delta method for a ratio of two sums over R rounds; NaN for one round, or
    without an answer of positive mass.
    """
    answers, masses, totals = answer_shares(rounds)
    size = len(rounds)
    if size < 2 or totals.sum() == 0.0:
        return dict.fromkeys(answers, math.nan)
    share = masses.sum(axis=0) / totals.sum()
    residuals = masses - totals[:, None] * share
    variance = np.sum(residuals**2, axis=0) * size / (size - 1) / totals.sum() ** 2
    return dict(zip(answers, np.sqrt(variance).tolist(), strict=True))
