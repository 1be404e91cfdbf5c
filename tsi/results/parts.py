"""The parts of a result: final particles, steps, evidence, posterior, diagnostics."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.accuracy.degeneracy import unique_ancestors


class FinalParticles(NamedTuple):
    """The N weighted solutions at the end of a run.

    Args:
        texts: generated text of each particle.
        answers: canonical answer of each particle, None if it has no answer.
        rewards: last reward of each particle, in [0, 1]; NaN if it is invalid.
        log_weights: log weights with mean weight one.
        step_texts: the steps of each particle, or None if not recorded.
        truncated: which particles were truncated at a limit, or None if not recorded.
        thinking: which of the truncated particles had not finished thinking (see
            `tsi.models.tokens.thinking`), or None if not recorded.
        log_corrections: log p - log q of each solution if tokens are forced at a limit
            (`tsi.decoding.forced_end`); otherwise None.
    """

    texts: list[str]
    answers: list[str | None]
    rewards: Float[np.ndarray, "N"]
    log_weights: Float[np.ndarray, "N"]
    step_texts: list[list[str]] | None = None
    truncated: Bool[np.ndarray, "N"] | None = None
    thinking: Bool[np.ndarray, "N"] | None = None
    log_corrections: Float[np.ndarray, "N"] | None = None

    @property
    def num_thinking(self) -> int:
        """Number of particles that were truncated before their thinking ended."""
        return 0 if self.thinking is None else int(self.thinking.sum())

    @property
    def num_distinct(self) -> int:
        """Number of different texts."""
        return len(set(self.texts))


def first_particles(particles: FinalParticles, size: int) -> FinalParticles:
    """The first `size` particles, with unchanged weights."""

    def head(column: Any) -> Any:
        return None if column is None else column[:size]

    return FinalParticles(*map(head, particles))


def join_particles(runs: Sequence[FinalParticles]) -> FinalParticles:
    """Concatenate the particles of several runs, with unchanged weights.

    A field that one of the runs has not recorded is None.
    """

    def join(columns: tuple[Any, ...]) -> Any:
        if any(column is None for column in columns):
            return None
        if isinstance(columns[0], list):
            return list(chain(*columns))
        return np.concatenate(columns)

    return FinalParticles(*map(join, zip(*runs, strict=True)))


class Steps(NamedTuple):
    """The record of the T steps of a run.

    Args:
        ess: effective sample size of the current particle system after each step, or
            each turn of an explorer; NaN if undefined, as for ranks of a search or
            states of a chain.
        ancestors: parent of each particle at each step; for explorers, the first
            particle with the same previous steps.
        resampled: whether particles were resampled before each step, or None if they
            are not extended together.
        rewards: reward of each particle after each step, ordered by the slots of that
            step, or None if not recorded; 0 for particles truncated by a limit.
        infos: further fields of the infos of a user's sampler, by name, stacked over
            steps or turns; None if not recorded.
    """

    ess: Float[np.ndarray, "T"]
    ancestors: Int[np.ndarray, "T N"]
    resampled: Bool[np.ndarray, "T"] | None = None
    rewards: Float[np.ndarray, "T N"] | None = None
    infos: dict[str, Any] | None = None

    @property
    def unique_ancestors(self) -> Int[np.ndarray, "T"]:
        """Number of particles of each step that have descendants at the end."""
        return unique_ancestors(self.ancestors)


class Evidence(NamedTuple):
    """An estimate Z_hat of the normalising constant of the target.

    Args:
        log_estimate: log Z_hat; NaN for a method without a target.
        variance: estimate of Var(Z_hat) / Z_hat^2, the variance of the log evidence to
            first order; NaN without an evidence estimate, for an estimate of zero, and
            for one particle. It may be negative in single runs.
    """

    log_estimate: float
    variance: float = math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the log evidence; NaN if the variance is negative."""
        return math.sqrt(self.variance) if self.variance >= 0 else math.nan


class Posterior(NamedTuple):
    """The posterior distribution of the answers.

    Args:
        probabilities: probability of each answer among particles with an answer, most
            probable first.
        errors: standard error of each probability, NaN if it cannot be estimated, as
            for searches and chains.
        selected: the answer that the sampler's rule selects, None if there is none.
    """

    probabilities: dict[str, float]
    errors: dict[str, float]
    selected: str | None


class Diagnostics(NamedTuple):
    """Diagnostics of the reliability of a run.

    Args:
        num_recoveries: number of times that all weights of a group became zero.
        num_invalid: number of potentials of NaN or +inf, which count as weight zero.
        num_truncated: number of particles truncated at a limit; a stored prefix that
            is several particles counts once.
        pareto_k: tail shape of the final weights; NaN if it cannot be estimated, as for
            fewer than 25 particles. Above 0.7 the errors are not reliable.
        acceptance_rate: fraction of the moves of a chain that were accepted; NaN
            without moves, or for a method without an accept step.
    """

    num_recoveries: int = 0
    num_invalid: int = 0
    num_truncated: int = 0
    pareto_k: float = math.nan
    acceptance_rate: float = math.nan
