"""What a run on one problem gives back: the same for every sampler."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from tsi.results.answers import unanswered_weight
from tsi.results.estimand import Estimand
from tsi.results.ledger import Ledger, SlotCosts
from tsi.results.notes import notes
from tsi.results.parts import Diagnostics, Evidence, FinalParticles, Posterior, Steps
from tsi.results.summary import summary


class Result(NamedTuple):
    """Weighted particles of one problem with their answers, diagnostics and cost.

    What is used most is an attribute of the result itself: `texts`, `answers`,
    `rewards`, `log_weights`, `log_evidence`, `answer_posterior`, `selected`, `ledger`.
    Everything else is in the part that it belongs to. `tsi.results.build.build_result`
    makes results and derives what follows from other parts.

    Args:
        problem_id: the problem's.
        estimand: what the weights and the evidence estimate.
        particles: the solutions at the end, with answers, rewards and weights.
        steps: effective sample sizes, genealogy and rewards step by step.
        evidence: its estimate and the variance of that.
        posterior: probabilities of the answers, their errors, the selected answer.
        diagnostics: counts of what went wrong, tail of the weights, accepted moves.
        ledger: what the run cost.
        slots: the ledger by particle slot, or None where it is not kept.
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

    @property
    def texts(self) -> list[str]:
        """What each particle generated."""
        return self.particles.texts

    @property
    def answers(self) -> list[str | None]:
        """Canonical answer of each particle, None where it gave none."""
        return self.particles.answers

    @property
    def rewards(self) -> Float[np.ndarray, "N"]:
        """Last reward of each particle, in (0, 1)."""
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
        """Probability of each answer given that there is one, most probable first."""
        return self.posterior.probabilities

    @property
    def selected(self) -> str | None:
        """The answer that the sampler's rule selects, None if there is none."""
        return self.posterior.selected

    @property
    def unanswered(self) -> float:
        """Share of the weight that has no answer, which the posterior leaves out."""
        return unanswered_weight(self.answers, self.log_weights)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before believing it, as sentences; see `tsi.results.notes`."""
        return notes(self)

    def __repr__(self) -> str:
        return summary(self)
