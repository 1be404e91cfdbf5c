"""Construction of results: the only place where derived fields are computed.

The engine, the rounds of an adaptive budget and the first n of N rollouts provide
particles, steps and error estimates. The posterior and the selected answer are derived
from the particles and the estimand. A method without a target has no evidence.
"""

import math

import numpy as np

from tsi.accuracy.diagnostics import Diagnosis
from tsi.results.estimand import Estimand
from tsi.results.ledger import Ledger, SlotCosts, ledger_of_first
from tsi.results.parts import Diagnostics, Evidence, FinalParticles, Posterior, Steps
from tsi.results.result import Result
from tsi.results.selection import answer_posterior, select
from tsi.weights import weight_dtype


def build_result(
    problem_id: int | str,
    estimand: Estimand,
    particles: FinalParticles,
    steps: Steps,
    diagnosis: Diagnosis,
    *,
    log_evidence: float,
    num_recoveries: int,
    num_invalid: int,
    num_truncated: int,
    acceptance_rate: float = math.nan,
    ledger: Ledger,
    slots: SlotCosts | None = None,
) -> Result:
    """Make a result from its parts.

    Args:
        problem_id: id of the problem.
        estimand: what the numbers estimate; its rule selects the answer.
        particles: final particles, with log weights of mean weight one in any float
            type. Answers are weighted in that type; the result has weights of
            `weight_dtype()`.
        steps: record of each step.
        diagnosis: error estimates of evidence and answers.
        log_evidence: log evidence of the run; ignored for a method without a target.
        num_recoveries, num_invalid, num_truncated, acceptance_rate: see
            `tsi.results.parts.Diagnostics`.
        ledger: the cost.
        slots: the ledger by slot, or None.
    """
    answers, log_weights = particles.answers, particles.log_weights
    return Result(
        problem_id=problem_id,
        estimand=estimand,
        particles=particles._replace(
            log_weights=np.asarray(log_weights, weight_dtype())
        ),
        steps=steps,
        evidence=Evidence(
            log_evidence if estimand.has_target else math.nan,
            diagnosis.log_evidence_variance if estimand.has_target else math.nan,
        ),
        posterior=Posterior(
            answer_posterior(answers, log_weights),
            diagnosis.answer_errors,
            select(estimand.select, answers, log_weights, particles.rewards),
        ),
        diagnostics=Diagnostics(
            num_recoveries,
            num_invalid,
            num_truncated,
            diagnosis.pareto_k,
            acceptance_rate,
        ),
        ledger=ledger,
        slots=slots,
    )


def price_without_reward(result: Result) -> Result:
    """Recompute the cost of a result for a method that does not use the reward.

    Its seconds are NaN, since the measured time includes the evaluation of the reward.
    """
    assert result.slots is not None
    rows = len(result.slots.flops)
    ledger = ledger_of_first(result.slots, rows, math.nan, reads_reward=False)
    return result._replace(
        ledger=ledger._replace(rollouts=result.ledger.rollouts),
        estimand=result.estimand._replace(reads_reward=False),
    )
