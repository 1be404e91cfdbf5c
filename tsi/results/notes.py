"""What a reader must know before a result is believed, as sentences.

Pure functions of a result: its posterior may leave out weight that has no answer, its
reward may tell no particle from another, and its limit may have cut every solution.
"""

import math
from typing import Any

import numpy as np

MIN_SPREAD = 0.01
"""Rewards that differ by less do not tell solutions apart."""
MIN_SHARE = 0.1
"""A share of the weight, or of the runs, that is worth a sentence."""


def reward_spread(result: Any) -> float:
    """How far apart the rewards of different solutions lie, at most.

    Rewards are compared at the end and, where they were kept, after each step, for a
    sampler drops before the end what scores low.

    Args:
        result: a `tsi.results.result.Result`.

    Returns:
        Largest minus smallest; NaN without two different texts that have rewards.
    """
    if len(set(result.texts)) < 2:
        return math.nan
    rounds = [np.asarray(result.rewards, np.float64)]
    if result.steps.rewards is not None:
        steps = np.asarray(result.steps.rewards, np.float64)
        # A limit makes the weight zero, which is no judgement of the reward's.
        cut = (steps == 0) & (result.diagnostics.num_truncated > 0)
        rounds += list(np.where(cut, np.nan, steps))
    spreads = [
        float(np.ptp(known))
        for rewards in rounds
        if (known := rewards[np.isfinite(rewards)]).size > 1
    ]
    return max(spreads, default=math.nan)


def all_truncated(result: Any) -> bool:
    """Whether a limit cut every particle that counts, so that no solution is whole."""
    if result.particles.truncated is None:
        return 0 < len(result.texts) <= result.diagnostics.num_truncated
    # What an explorer's members are padded with has neither weight nor answer.
    padding = np.isneginf(result.log_weights) & np.array(
        [answer is None for answer in result.answers]
    )
    truncated = np.asarray(result.particles.truncated)
    return bool(truncated.any() and (truncated | padding).all())


def notes(result: Any) -> tuple[str, ...]:
    """The sentences that apply; none where all is well.

    Args:
        result: a `tsi.results.result.Result`.
    """
    found = []
    forced = result.particles.log_corrections is not None
    if all_truncated(result) and forced:
        found.append(
            "What is forced at the token or step limit has probability zero for every "
            "particle, so that there is no answer: a truncated policy, or one at "
            "temperature 0, may never write it. Let the policy write more tokens, "
            "raise the limit, or force nothing."
        )
    elif all_truncated(result):
        found.append(
            "The token or step limit cut every particle before it ended, so that there "
            "is no answer; raise the limit, or have the policy write less."
        )
    elif (unanswered := result.unanswered) >= MIN_SHARE:
        found.append(
            f"{100 * unanswered:.0f} % of the weight is on particles without an "
            "answer, which the answer posterior leaves out."
        )
    # A difference of two decimal numbers may round to just above a hundredth.
    alike = reward_spread(result) <= MIN_SPREAD * (1 + 1e-6)
    if result.estimand.reads_reward and alike:
        found.append(
            f"All rewards lie within {MIN_SPREAD} of each other: the reward does not "
            "discriminate between the particles, and weights by it say little."
        )
    return tuple(found)
