"""Notes on the limitations of a result, as sentences.

Pure functions of a result. Examples: the posterior omits weight without an answer, the
reward does not discriminate between particles, a limit has truncated every solution.
"""

import math
from typing import Any

import numpy as np

MIN_SPREAD = 0.01
"""Rewards that differ by less do not discriminate between solutions."""
MIN_SHARE = 0.1
"""A note is given from this share of the weight, or of the runs, on."""


def reward_spread(result: Any) -> float:
    """The largest difference between rewards of different solutions.

    Rewards are compared at the end and, if they are recorded, after each step, since a
    sampler drops prefixes of low reward before the end.

    Args:
        result: a `tsi.results.result.Result`.

    Returns:
        Largest minus smallest reward; NaN without two different texts with rewards.
    """
    if len(set(result.texts)) < 2:
        return math.nan
    rounds = [np.asarray(result.rewards, np.float64)]
    if result.steps.rewards is not None:
        steps = np.asarray(result.steps.rewards, np.float64)
        # A limit has set this reward to zero; the reward itself did not give this
        # value.
        cut = (steps == 0) & (result.diagnostics.num_truncated > 0)
        rounds += list(np.where(cut, np.nan, steps))
    spreads = [
        float(np.ptp(finite_rewards))
        for rewards in rounds
        if (finite_rewards := rewards[np.isfinite(rewards)]).size > 1
    ]
    return max(spreads, default=math.nan)


def all_truncated(result: Any) -> bool:
    """Whether a limit truncated every particle, so that no solution is complete."""
    if result.particles.truncated is None:
        return 0 < len(result.texts) <= result.diagnostics.num_truncated
    # The padding of an explorer's members has neither weight nor answer.
    padding = np.isneginf(result.log_weights) & np.array(
        [answer is None for answer in result.answers]
    )
    truncated = np.asarray(result.particles.truncated)
    return bool(truncated.any() and (truncated | padding).all())


def notes(result: Any) -> tuple[str, ...]:
    """The notes that apply to a result.

    Args:
        result: a `tsi.results.result.Result`.
    """
    sentences = []
    forced = result.particles.log_corrections is not None
    if all_truncated(result) and forced:
        sentences.append(
            "What is forced at the token or step limit has probability zero for every "
            "particle, so that there is no answer: a truncated policy, or one at "
            "temperature 0, may never write it. Let the policy write more tokens, "
            "raise the limit, or force nothing."
        )
    elif all_truncated(result):
        sentences.append(
            "The token or step limit cut every particle before it ended, so that there "
            "is no answer; raise the limit, or have the policy write less."
        )
    elif (unanswered := result.unanswered) >= MIN_SHARE:
        sentences.append(
            f"{100 * unanswered:.0f} % of the weight is on particles without an "
            "answer, which the answer posterior leaves out."
        )
    # A difference of 0.01 may round to slightly more in floating point.
    has_equal_rewards = reward_spread(result) <= MIN_SPREAD * (1 + 1e-6)
    if result.estimand.reads_reward and has_equal_rewards:
        sentences.append(
            f"All rewards lie within {MIN_SPREAD} of each other: the reward does not "
            "discriminate between the particles, and weights by it say little."
        )
    retokenized = result.ledger.retokenized_steps
    if retokenized:
        sentences.append(
            f"The server reads at least {retokenized:,} steps as other tokens than it "
            "has drawn, since it takes only text; there the policy continues another "
            "prefix. A server that takes token ids continues exactly."
        )
    return tuple(sentences)
