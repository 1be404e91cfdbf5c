"""The one place where results are made, and where what follows from a part is derived.

The engine, the rounds of an adaptive budget and the first n of N rollouts each know
their particles, their steps and an estimate of their errors. Posterior and selected
answer follow from the particles and the estimand, and so does what a method without a
target does not have.
"""

import math

import numpy as np

from tsi.accuracy.diagnostics import Diagnosis
from tsi.results.answers import answer_posterior, select
from tsi.results.estimand import Estimand
from tsi.results.ledger import Ledger, SlotCosts, ledger_of_first
from tsi.results.parts import Diagnostics, Evidence, FinalParticles, Posterior, Steps
from tsi.results.result import Result
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
    """A result from its parts.

    Args:
        problem_id: the problem's.
        estimand: what the numbers estimate; its rule selects the answer.
        particles: with log weights of mean weight one, of any float type: answers are
            weighed as they are, and the result keeps them as `weight_dtype()`.
        steps: what happened at each step.
        diagnosis: errors of evidence and answers.
        log_evidence: of the run; a method without a target has none.
        num_recoveries, num_invalid, num_truncated, acceptance_rate: see
            `tsi.results.parts.Diagnostics`.
        ledger: what it cost.
        slots: the ledger by slot, where it is kept.
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
    """The result of a method that never looks at the reward, priced as such.

    Its seconds are NaN: the engine has read the reward all the same.
    """
    assert result.slots is not None
    rows = len(result.slots.flops)
    ledger = ledger_of_first(result.slots, rows, math.nan, reads_reward=False)
    return result._replace(
        ledger=ledger._replace(rollouts=result.ledger.rollouts),
        estimand=result.estimand._replace(reads_reward=False),
    )
