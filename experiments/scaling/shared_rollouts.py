"""Smaller budgets of methods that never resample, read off one large run.

Self-consistency, best-of-N and weighted best-of-N draw the same rollouts, because a
particle's random stream depends on (seed, problem, particle, step, token) alone. So
the first n particles of a run of N are exactly the run of n, and one run at the
largest budget gives every row of all three methods, each with the cost that its own
run would have had.
"""

import math

import numpy as np

from tsi.accuracy.diagnostics import diagnose
from tsi.errors import ConfigurationError
from tsi.results.answers import answer_posterior, select
from tsi.results.result import Result, ledger_of_first


def first_rollouts(
    result: Result, num_rollouts: int, rule: str, *, reads_reward: bool
) -> Result:
    """The result that the first n particles alone would have given.

    Args:
        result: of a sampler that never resamples and weighs by the reward at the end.
        num_rollouts: n, at most the result's N.
        rule: selection rule of the method.
        reads_reward: False for a method whose weights are all one, or what was forced
            at a limit has cost.

    Returns:
        The result of n particles. Weights before the end decide nothing here, so its
        ESS, recoveries and invalid potentials are those of the last step alone. Its
        seconds are NaN, for time cannot be derived, unless it is the whole run.

    Raises:
        ConfigurationError: the result is too small or lacks costs by slot.
    """
    total = len(result.texts)
    kept = (result.slots, result.truncated, result.step_texts)
    if any(field is None for field in kept) or num_rollouts > total:
        raise ConfigurationError(
            f"{num_rollouts} rollouts cannot be read off a result of {total} "
            "that keeps steps and costs by slot: run the method itself."
        )
    assert result.slots is not None  # for the type checker; checked above
    assert result.truncated is not None
    assert result.step_texts is not None
    n = num_rollouts
    log_weights = np.zeros(n)
    log_evidence = 0.0
    weighted = reads_reward or result.log_corrections is not None
    if weighted:
        # Undo the mean-one normalisation of N, then apply that of n.
        log_weights = result.log_weights[:n].astype(np.float64) + result.log_evidence
        if not reads_reward:
            assert result.log_corrections is not None
            log_weights = result.log_corrections[:n].astype(np.float64)
        log_evidence = _log_mean_exp(log_weights)
        alive = math.isfinite(log_evidence)
        log_weights = log_weights - log_evidence if alive else np.zeros(n)
    answers, rewards = result.answers[:n], result.rewards[:n]
    seconds = result.ledger.seconds if reads_reward and n == total else math.nan
    num_steps = max(map(len, result.step_texts[:n]))
    ancestors = result.ancestors[:num_steps, :n]
    diagnosis = diagnose(
        answers, log_weights, log_evidence, ancestors, np.zeros(num_steps, bool)
    )
    step_rewards = result.step_rewards
    ess = np.exp(2 * _log_sum_exp(log_weights) - _log_sum_exp(2 * log_weights))
    return result._replace(
        texts=result.texts[:n],
        answers=answers,
        rewards=rewards,
        log_weights=log_weights.astype(np.float32),
        log_evidence=log_evidence,
        ess=np.array([ess], np.float32),
        ancestors=ancestors,
        step_texts=result.step_texts[:n],
        num_recoveries=int(math.isinf(log_evidence)),
        num_invalid=int(np.isnan(rewards).sum()),
        num_truncated=int(result.truncated[:n].sum()),
        truncated=result.truncated[:n],
        log_corrections=(
            None if result.log_corrections is None else result.log_corrections[:n]
        ),
        thinking=None if result.thinking is None else result.thinking[:n],
        answer_posterior=answer_posterior(answers, log_weights),
        selected=select(rule, answers, log_weights, rewards),
        ledger=ledger_of_first(result.slots, n, seconds, with_reward=reads_reward),
        slots=None,
        step_rewards=None if step_rewards is None else step_rewards[:num_steps, :n],
        resampled=np.zeros(num_steps, bool),
        **diagnosis._asdict(),
    )


def _log_sum_exp(values: np.ndarray) -> float:
    top = float(values.max())
    if math.isinf(top):
        return top
    return top + math.log(float(np.exp(values - top).sum()))


def _log_mean_exp(values: np.ndarray) -> float:
    return _log_sum_exp(values) - math.log(values.size)
