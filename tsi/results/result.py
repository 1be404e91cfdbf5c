"""What a run on one problem gives back: the same for every sampler."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.results.answers import unanswered_weight
from tsi.results.notes import notes


class Ledger(NamedTuple):
    """What a run cost.

    Args:
        rollouts: particles N, the budget that papers report.
        generated_tokens: tokens the policy sampled, including those that resampling
            threw away later; the prompt's are not among them.
        reward_tokens: tokens the reward model read.
        flops: floating-point operations of both models, prompt included.
        seconds: wall-clock share of this problem in its batch.
    """

    rollouts: int
    generated_tokens: int
    reward_tokens: int
    flops: float
    seconds: float


class SlotCosts(NamedTuple):
    """The ledger split by particle slot, so that a run of n < N can be priced exactly.

    Only a sampler that never resamples has slots that are rollouts of their own; then
    the first n slots of a run of N cost what a run of n alone would have cost.

    Args:
        generated_tokens: tokens sampled in each slot.
        reward_tokens: tokens the reward model read for each slot, the prompt excluded.
        flops: operations the policy spent on each slot, the prompt excluded.
        reward_flops: the same of the reward model.
        prompt_reward_tokens: prompt tokens the reward model read, once for all slots.
        prompt_flops: operations the policy spent on the prompt, once for all slots.
        prompt_reward_flops: the same of the reward model.
    """

    generated_tokens: Int[np.ndarray, "N"]
    reward_tokens: Int[np.ndarray, "N"]
    flops: Float[np.ndarray, "N"]
    reward_flops: Float[np.ndarray, "N"]
    prompt_reward_tokens: int
    prompt_flops: float
    prompt_reward_flops: float


class Result(NamedTuple):
    """Weighted particles of one problem with their answers, diagnostics and cost.

    Args:
        problem_id: the problem's.
        texts: what each particle generated.
        answers: canonical answer of each particle, None where it gave none.
        rewards: last reward of each particle, in (0, 1).
        log_weights: log weights with mean weight one.
        log_evidence: log of the evidence estimate; NaN for a method without a target.
        ess: effective sample size after each step, or each turn of an explorer, where
            it is that of the particle system in use; NaN where there is none, as of the
            ranks of a search or the states of a chain.
        ancestors: parent of each particle at each step; of explorers, the first
            particle with the same steps before.
        step_texts: the steps of each surviving particle, or None where not kept.
        num_recoveries: steps at which every weight of a group was zero.
        num_invalid: potentials that were not a number (weight zero).
        num_truncated: particles that ended at a limit instead of by themselves.
        answer_posterior: probability of each answer given that there is one; the weight
            that has none is `unanswered`.
        selected: the answer that the sampler's rule selects, None if there is none.
        ledger: what the run cost.
        slots: the ledger by particle slot, or None where the engine does not keep it.
        truncated: which particles are those of `num_truncated`, or None.
        log_evidence_variance: estimate of Var(Z_hat) / Z_hat^2, the variance of the log
            evidence to first order; NaN where the sampler estimates no evidence, where
            the estimate is zero, and for one particle. Single runs may be negative.
        answer_errors: standard error of each answer's posterior probability, NaN where
            it cannot be estimated, as for searches and chains; None where not kept.
        pareto_k: tail shape of the final weights; NaN where it cannot be estimated, as
            for fewer than 25 particles. Above 0.7 the errors are not to be trusted.
        unique_ancestors: distinct particles of each step with descendants at the end,
            or None where particles have no genealogy.
        step_rewards: reward of each particle after each step, in the slots of that
            step, or None where not kept; 0 where a limit made the weight zero.
        resampled: whether particles were resampled before each step, or None where
            they are not extended together.
        acceptance_rate: fraction of a chain's moves that were accepted; NaN where none
            was made or the method accepts none.
        thinking: which of the `truncated` particles had not ended their thinking (see
            `tsi.models.tokens.thinking`), or None where not kept.
        log_corrections: log p - log q of each particle's solution where something is
            forced at a limit (`tsi.decoding.forced_end`); None where nothing is.
        infos: what the infos of a sampler of one's own have beside the fields above,
            by field, stacked over steps or turns; None where not kept.
    """

    problem_id: int | str
    texts: list[str]
    answers: list[str | None]
    rewards: Float[np.ndarray, "N"]
    log_weights: Float[np.ndarray, "N"]
    log_evidence: float
    ess: Float[np.ndarray, "T"]
    ancestors: Int[np.ndarray, "T N"]
    step_texts: list[list[str]] | None
    num_recoveries: int
    num_invalid: int
    num_truncated: int
    answer_posterior: dict[str, float]
    selected: str | None
    ledger: Ledger
    slots: SlotCosts | None = None
    truncated: Bool[np.ndarray, "N"] | None = None
    log_evidence_variance: float = math.nan
    answer_errors: dict[str, float] | None = None
    pareto_k: float = math.nan
    unique_ancestors: Int[np.ndarray, "T"] | None = None
    step_rewards: Float[np.ndarray, "T N"] | None = None
    resampled: Bool[np.ndarray, "T"] | None = None
    acceptance_rate: float = math.nan
    thinking: Bool[np.ndarray, "N"] | None = None
    infos: dict[str, Any] | None = None
    log_corrections: Float[np.ndarray, "N"] | None = None

    @property
    def unanswered(self) -> float:
        """Share of the weight that has no answer, which the posterior leaves out."""
        return unanswered_weight(self.answers, self.log_weights)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before believing it, as sentences; see `tsi.results.notes`."""
        return notes(self)


def ledger_of_first(
    slots: SlotCosts, num_slots: int, seconds: float, *, with_reward: bool = True
) -> Ledger:
    """Ledger of a run of the first `num_slots` particles alone.

    Args:
        slots: costs by slot of a run that never resampled.
        num_slots: how many of its particles the smaller run has.
        seconds: wall-clock time to enter, which cannot be derived.
        with_reward: False prices a method that never looks at the reward.
    """
    flops = slots.prompt_flops + slots.flops[:num_slots].sum()
    reward_tokens = slots.prompt_reward_tokens + slots.reward_tokens[:num_slots].sum()
    reward_flops = slots.prompt_reward_flops + slots.reward_flops[:num_slots].sum()
    return Ledger(
        rollouts=num_slots,
        generated_tokens=int(slots.generated_tokens[:num_slots].sum()),
        reward_tokens=int(reward_tokens) if with_reward else 0,
        flops=float(flops + reward_flops) if with_reward else float(flops),
        seconds=seconds,
    )


def without_reward(result: Result) -> Result:
    """The result of a method that never looks at the reward, priced as such.

    Its seconds are NaN: the engine has read the reward all the same.
    """
    assert result.slots is not None
    rows = len(result.slots.flops)
    ledger = ledger_of_first(result.slots, rows, float("nan"), with_reward=False)
    return result._replace(ledger=ledger._replace(rollouts=result.ledger.rollouts))
