"""What a run cost: tokens, operations, seconds, for all particles or slot by slot."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


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


def ledger_of_first(
    slots: SlotCosts, num_slots: int, seconds: float, *, reads_reward: bool = True
) -> Ledger:
    """Ledger of a run of the first `num_slots` particles alone.

    Args:
        slots: costs by slot of a run that never resampled.
        num_slots: how many of its particles the smaller run has.
        seconds: wall-clock time to enter, which cannot be derived.
        reads_reward: False prices a method that never looks at the reward.
    """
    flops = slots.prompt_flops + slots.flops[:num_slots].sum()
    reward_tokens = slots.prompt_reward_tokens + slots.reward_tokens[:num_slots].sum()
    reward_flops = slots.prompt_reward_flops + slots.reward_flops[:num_slots].sum()
    return Ledger(
        rollouts=num_slots,
        generated_tokens=int(slots.generated_tokens[:num_slots].sum()),
        reward_tokens=int(reward_tokens) if reads_reward else 0,
        flops=float(flops + reward_flops) if reads_reward else float(flops),
        seconds=seconds,
    )


def add_ledgers(*ledgers: Ledger) -> Ledger:
    """Ledger of several runs together."""
    return Ledger(*map(sum, zip(*ledgers, strict=True)))
