"""Smaller budgets of methods that never resample, taken from one large run.

Self-consistency, best-of-N and weighted best-of-N draw the same rollouts, because a
particle's random numbers depend only on (seed, problem, particle, step, token). So the
first n particles of a run of N equal the run of n, and one run at the largest budget
gives the rows of all three methods at all budgets, each with the cost of its own run.
"""

import math

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from tsi.accuracy.diagnostics import diagnose, eves
from tsi.errors import ConfigurationError
from tsi.results.build import build_result
from tsi.results.estimand import Estimand
from tsi.results.ledger import ledger_of_first
from tsi.results.parts import FinalParticles, Steps, first_particles
from tsi.results.result import Result


def first_rollouts(result: Result, num_rollouts: int, estimand: Estimand) -> Result:
    """The result of a run of only the first n particles.

    Args:
        result: of a sampler that never resamples and weights by the final reward.
        num_rollouts: n, at most the result's N.
        estimand: of the method whose result is wanted. If it does not read the reward,
            weights are one, or the corrections of forced ends.

    Returns:
        The result of n particles. Its ESS, recoveries and invalid potentials are those
        of the last step, because earlier weights are not used. Its seconds are NaN,
        because time cannot be derived, unless n = N and the method reads the reward.

    Raises:
        ConfigurationError: the result has fewer particles, or no steps or costs by
            slot.
    """
    n, total, slots = num_rollouts, len(result.texts), result.slots
    particles = first_particles(result.particles, n)
    truncated, step_texts = particles.truncated, particles.step_texts
    if slots is None or truncated is None or step_texts is None or n > total:
        raise ConfigurationError(
            f"{n} rollouts cannot be taken from a result of {total}; it must be as "
            "large and keep steps and costs by slot. Run the method itself."
        )
    log_weights, log_evidence = first_log_weights(
        result.particles, result.log_evidence, n, reads_reward=estimand.reads_reward
    )
    num_steps = max(map(len, step_texts))
    rewards = result.steps.rewards
    ess = np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))
    steps = Steps(
        ess=np.array([ess], np.float32),
        ancestors=result.steps.ancestors[:num_steps, :n],
        resampled=np.zeros(num_steps, bool),
        rewards=None if rewards is None else rewards[:num_steps, :n],
    )
    is_whole_run = estimand.reads_reward and n == total
    seconds = result.ledger.seconds if is_whole_run else math.nan
    return build_result(
        result.problem_id,
        estimand,
        particles._replace(log_weights=log_weights),
        steps,
        diagnose(
            particles.answers,
            log_weights,
            log_evidence,
            eves(steps.ancestors),
            0,
            has_errors=estimand.is_weighted_sample,
        ),
        log_evidence=log_evidence,
        num_recoveries=int(math.isinf(log_evidence)),
        num_invalid=int(np.isnan(particles.rewards).sum()),
        num_truncated=int(truncated.sum()),
        ledger=ledger_of_first(slots, n, seconds, reads_reward=estimand.reads_reward),
    )


def first_log_weights(
    particles: FinalParticles, log_evidence: float, size: int, *, reads_reward: bool
) -> tuple[Float[np.ndarray, "n"], float]:
    """Log weights of the first n of N rollouts, with mean weight one, and log evidence.

    Args:
        particles: of a run of N that never resampled.
        log_evidence: of that run.
        size: n.
        reads_reward: whether rollouts are weighted by the reward; if not, weights are
            one, or the corrections of forced ends.
    """
    if reads_reward:
        # Undo the normalisation of N weights to mean one; that of n weights follows.
        log_weights = particles.log_weights[:size].astype(np.float64) + log_evidence
    elif particles.log_corrections is not None:
        log_weights = particles.log_corrections[:size].astype(np.float64)
    else:
        return np.zeros(size), 0.0
    log_mean = float(logsumexp(log_weights)) - math.log(size)
    has_weight = math.isfinite(log_mean)
    return log_weights - log_mean if has_weight else np.zeros(size), log_mean
