"""The result of a run on one problem, the same type for every sampler."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tsi.results.estimand import Estimand
from tsi.results.ledger import Ledger, SlotCosts
from tsi.results.notes import notes
from tsi.results.parts import Diagnostics, Evidence, FinalParticles, Posterior, Steps
from tsi.results.selection import unanswered_weight
from tsi.results.summary import summary


class Result(NamedTuple):
    """Weighted particles of one problem with their answers, diagnostics and cost.

    The fields used most are attributes of the result itself: `texts`, `answers`,
    `rewards`, `log_weights`, `log_evidence`, `answer_posterior`, `selected`, `ledger`.
    The others are in the parts. `tsi.results.build.build_result` makes results and
    computes derived fields.

    Args:
        problem_id: id of the problem.
        estimand: what the weights and the evidence estimate.
        particles: the solutions at the end, with answers, rewards and weights.
        steps: effective sample sizes, genealogy and rewards of each step.
        evidence: the evidence estimate and its variance.
        posterior: probabilities of the answers, their errors, the selected answer.
        diagnostics: counts of problems, tail of the weights, acceptance rate.
        ledger: the cost of the run.
        slots: the ledger per particle slot, or None if not recorded.
    """

    problem_id: int | str
    estimand: Estimand
    particles: FinalParticles
    steps: Steps
    evidence: Evidence
    posterior: Posterior
    diagnostics: Diagnostics
    ledger: Ledger
    slots: SlotCosts | None = None

    def with_seconds(self, seconds: float) -> "Result":
        """The result with another time in its ledger."""
        return self._replace(ledger=self.ledger._replace(seconds=seconds))

    @property
    def texts(self) -> list[str]:
        """Generated text of each particle."""
        return self.particles.texts

    @property
    def answers(self) -> list[str | None]:
        """Canonical answer of each particle, None if it has no answer."""
        return self.particles.answers

    @property
    def rewards(self) -> Float[np.ndarray, "N"]:
        """Last reward of each particle, in [0, 1]; NaN if it is invalid."""
        return self.particles.rewards

    @property
    def log_weights(self) -> Float[np.ndarray, "N"]:
        """Log weights with mean weight one."""
        return self.particles.log_weights

    @property
    def log_evidence(self) -> float:
        """Log of the evidence estimate; NaN for a method without a target."""
        return self.evidence.log_estimate

    @property
    def answer_posterior(self) -> dict[str, float]:
        """Probability of each answer among particles with an answer, largest first."""
        return self.posterior.probabilities

    @property
    def selected(self) -> str | None:
        """The answer that the sampler's rule selects, None if there is none."""
        return self.posterior.selected

    @property
    def unanswered(self) -> float:
        """Share of the weight of particles without an answer."""
        return unanswered_weight(self.answers, self.log_weights)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the limitations of the result; see `tsi.results.notes`."""
        return notes(self)

    def __repr__(self) -> str:
        return summary(self)
