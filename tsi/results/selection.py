"""Counts of answers and their selection.

The selection rules are those of the literature: the posterior mode; the particle of
highest reward (best-of-N); the majority (self-consistency, Wang et al. 2022, arXiv
2203.11171); the sum of rewards per answer (weighted best-of-N, Li et al. 2022, arXiv
2206.02336). Ties go to the answer that appears first.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from tsi.errors import UnknownNameError

UNANSWERED = "\ud800"
"""Stands for a missing answer: a lone surrogate, which no decoded text has."""


def answer_posterior(
    answers: Sequence[str | None], log_weights: Float[np.ndarray, "N"]
) -> dict[str, float]:
    """Probability of each answer among particles with an answer, most probable first.

    The weight of particles without an answer is :func:`unanswered_weight`. If every
    particle with an answer has weight zero, these particles count equally.

    Args:
        answers: as extracted; equal texts are one answer.
        log_weights: in any normalisation; a NaN counts as weight zero.
    """
    indices = [n for n, answer in enumerate(answers) if answer is not None]
    if not indices:
        return {}
    selected_weights = np.asarray(log_weights, np.float64)[indices]
    selected_weights = np.where(np.isnan(selected_weights), -np.inf, selected_weights)
    top = selected_weights.max()
    if np.isneginf(top):
        weights = np.ones_like(selected_weights)
    elif np.isposinf(top):
        weights = (selected_weights == top).astype(np.float64)
    else:
        weights = np.exp(selected_weights - top)
    totals = _totals([str(answers[n]) for n in indices], weights)
    mass = math.fsum(totals.values())
    # sorted() is stable: equal masses stay in the order of first appearance.
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return {answer: total / mass for answer, total in ranked}


def unanswered_weight(
    answers: Sequence[str | None], log_weights: Float[np.ndarray, "N"]
) -> float:
    """Share of the weight of particles without an answer.

    If every weight is zero, particles count equally.

    Args:
        answers: as extracted; equal texts are one answer.
        log_weights: in any normalisation; a NaN counts as weight zero.
    """
    labels = [UNANSWERED if answer is None else answer for answer in answers]
    return answer_posterior(labels, log_weights).get(UNANSWERED, 0.0)


def select(
    rule: str,
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    """Select an answer by a rule; particles without an answer are ignored.

    Args:
        rule: "posterior", "argmax", "vote" or "weighted_vote".
        answers: as extracted; equal texts are one answer.
        log_weights: log weights, used by "posterior".
        rewards: rewards in (0, 1), used by "argmax" and "weighted_vote"; a NaN counts
            as 0.

    Returns:
        The answer, or None if no particle has one.

    Raises:
        UnknownNameError: for an unknown rule.
    """
    if rule not in SELECTION_RULES:
        raise UnknownNameError("selection rule", rule, SELECTION_RULES)
    return SELECTION_RULES[rule](answers, log_weights, rewards)


def _select_posterior(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    return next(iter(answer_posterior(answers, log_weights)), None)


def _select_argmax(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    indices = [n for n, answer in enumerate(answers) if answer is not None]
    rewards = np.nan_to_num(np.asarray(rewards, np.float64), nan=0.0)
    # max() keeps the first of equal values.
    return answers[max(indices, key=lambda n: rewards[n])] if indices else None


def _select_vote(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    return _select_largest_total(answers, np.ones(len(answers)))


def _select_weighted_vote(
    answers: Sequence[str | None],
    log_weights: Float[np.ndarray, "N"],
    rewards: Float[np.ndarray, "N"],
) -> str | None:
    return _select_largest_total(
        answers, np.nan_to_num(np.asarray(rewards, np.float64), nan=0.0)
    )


SELECTION_RULES: dict[str, Callable[..., str | None]] = {
    "posterior": _select_posterior,
    "argmax": _select_argmax,
    "vote": _select_vote,
    "weighted_vote": _select_weighted_vote,
}


def _select_largest_total(
    answers: Sequence[str | None], weights: np.ndarray
) -> str | None:
    indices = [n for n, answer in enumerate(answers) if answer is not None]
    totals = _totals([str(answers[n]) for n in indices], weights[indices])
    return max(totals, key=lambda answer: totals[answer]) if totals else None


def _totals(answers: Sequence[str], weights: np.ndarray) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        groups.setdefault(answer, []).append(float(weight))
    # fsum: sums of equal weights in another order must be exactly equal.
    return {answer: math.fsum(group) for answer, group in groups.items()}
