"""The parts of a result: final particles, steps, evidence, posterior, diagnostics."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.accuracy.degeneracy import unique_ancestors


class FinalParticles(NamedTuple):
    """The N weighted solutions that a run ends with.

    Args:
        texts: what each particle generated.
        answers: canonical answer of each particle, None where it gave none.
        rewards: last reward of each particle, in (0, 1).
        log_weights: log weights with mean weight one.
        step_texts: the steps of each particle, or None where not kept.
        truncated: which particles ended at a limit instead of by themselves, or None
            where not kept.
        thinking: which of the truncated particles had not ended their thinking (see
            `tsi.models.tokens.thinking`), or None where not kept.
        log_corrections: log p - log q of each solution where something is forced at a
            limit (`tsi.decoding.forced_end`); None where nothing is.
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
        """Particles that were cut at a limit before their thinking ended."""
        return 0 if self.thinking is None else int(self.thinking.sum())

    @property
    def num_distinct(self) -> int:
        """Different texts."""
        return len(set(self.texts))


def first_particles(particles: FinalParticles, size: int) -> FinalParticles:
    """The first `size` particles, with their weights as they are."""

    def head(column: Any) -> Any:
        return None if column is None else column[:size]

    return FinalParticles(*map(head, particles))


def join_particles(runs: Sequence[FinalParticles]) -> FinalParticles:
    """Particles of several runs, one run after the other, with weights as they are.

    What one of the runs does not keep, the whole does not.
    """

    def join(columns: tuple[Any, ...]) -> Any:
        if any(column is None for column in columns):
            return None
        if isinstance(columns[0], list):
            return list(chain(*columns))
        return np.concatenate(columns)

    return FinalParticles(*map(join, zip(*runs, strict=True)))


class Steps(NamedTuple):
    """What happened at each of the T steps of a run.

    Args:
        ess: effective sample size after each step, or each turn of an explorer, where
            it is that of the particle system in use; NaN where there is none, as of the
            ranks of a search or the states of a chain.
        ancestors: parent of each particle at each step; of explorers, the first
            particle with the same steps before.
        resampled: whether particles were resampled before each step, or None where
            they are not extended together.
        rewards: reward of each particle after each step, in the slots of that step, or
            None where not kept; 0 where a limit made the weight zero.
        infos: what the infos of a sampler of one's own have beside the fields above,
            by field, stacked over steps or turns; None where not kept.
    """

    ess: Float[np.ndarray, "T"]
    ancestors: Int[np.ndarray, "T N"]
    resampled: Bool[np.ndarray, "T"] | None = None
    rewards: Float[np.ndarray, "T N"] | None = None
    infos: dict[str, Any] | None = None

    @property
    def unique_ancestors(self) -> Int[np.ndarray, "T"]:
        """Distinct particles of each step with descendants at the end."""
        return unique_ancestors(self.ancestors)


class Evidence(NamedTuple):
    """An estimate Z_hat of the target's normalising constant.

    Args:
        log_estimate: log Z_hat; NaN for a method without a target.
        variance: estimate of Var(Z_hat) / Z_hat^2, the variance of the log evidence to
            first order; NaN where the sampler estimates no evidence, where the estimate
            is zero, and for one particle. Single runs may be negative.
    """

    log_estimate: float
    variance: float = math.nan

    @property
    def standard_error(self) -> float:
        """Of the log evidence; NaN where the estimated variance is negative."""
        return math.sqrt(self.variance) if self.variance >= 0 else math.nan


class Posterior(NamedTuple):
    """What a run says of the answers.

    Args:
        probabilities: of each answer given that there is one, most probable first.
        errors: standard error of each probability, NaN where it cannot be estimated,
            as for searches and chains.
        selected: the answer that the sampler's rule selects, None if there is none.
    """

    probabilities: dict[str, float]
    errors: dict[str, float]
    selected: str | None


class Diagnostics(NamedTuple):
    """What tells whether a run is to be believed.

    Args:
        num_recoveries: steps at which every weight of a group was zero.
        num_invalid: potentials that were not a number (weight zero).
        num_truncated: particles that ended at a limit instead of by themselves; a
            stored prefix that is several particles counts once.
        pareto_k: tail shape of the final weights; NaN where it cannot be estimated, as
            for fewer than 25 particles. Above 0.7 the errors are not to be trusted.
        acceptance_rate: fraction of a chain's moves that were accepted; NaN where none
            was made or the method accepts none.
    """

    num_recoveries: int = 0
    num_invalid: int = 0
    num_truncated: int = 0
    pareto_k: float = math.nan
    acceptance_rate: float = math.nan
