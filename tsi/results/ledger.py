"""The cost of a run: tokens, operations and seconds, in total or per slot."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Ledger(NamedTuple):
    """The cost of a run.

    Args:
        rollouts: particles N, the budget that papers report.
        generated_tokens: tokens that the policy sampled, including those that
            resampling dropped later, without the prompt.
        reward_tokens: tokens that the reward model read.
        flops: floating-point operations of both models, prompt included.
        seconds: this problem's share of the wall-clock time of its batch.
        sent_tokens: tokens of prefixes that were sent to a server to draw steps; a
            prefix counts once per request. 0 if the policy is in this process.
        cached_tokens: how many of these were read from the server's cache.
        retokenized_steps: steps that a server which takes only text certainly reads as
            other tokens than it has drawn; 0 if the tokenizer is not known.
    """

    rollouts: int
    generated_tokens: int
    reward_tokens: int
    flops: float
    seconds: float
    sent_tokens: int = 0
    cached_tokens: int = 0
    retokenized_steps: int = 0


class SlotCosts(NamedTuple):
    """The ledger per particle slot; it gives the exact cost of a run of n < N.

    This requires a sampler that never resamples, so that slots are independent
    rollouts. The first n slots of a run of N then cost as much as a run of n.

    Args:
        generated_tokens: tokens sampled in each slot.
        reward_tokens: tokens that the reward model read per slot, without the prompt.
        flops: operations of the policy per slot, without the prompt.
        reward_flops: operations of the reward model per slot, without the prompt.
        prompt_reward_tokens: prompt tokens that the reward model read, once per
            problem.
        prompt_flops: operations of the policy on the prompt, once per problem.
        prompt_reward_flops: operations of the reward model on the prompt, once per
            problem.
        sent_tokens, cached_tokens, retokenized_steps: as in `Ledger`, per slot; None if
            the policy is in this process.
        slots_per_prompt: number of slots of each of several runs that are put together,
            each of which has read the prompt; None for one run.
    """

    generated_tokens: Int[np.ndarray, "N"]
    reward_tokens: Int[np.ndarray, "N"]
    flops: Float[np.ndarray, "N"]
    reward_flops: Float[np.ndarray, "N"]
    prompt_reward_tokens: int
    prompt_flops: float
    prompt_reward_flops: float
    sent_tokens: Int[np.ndarray, "N"] | None = None
    cached_tokens: Int[np.ndarray, "N"] | None = None
    retokenized_steps: Int[np.ndarray, "N"] | None = None
    slots_per_prompt: int | None = None

    def num_prompts(self, num_slots: int) -> int:
        """How often the first `num_slots` slots have read the prompt."""
        each = self.slots_per_prompt
        return 1 if each is None else -(-num_slots // each)


def ledger_of_first(
    slots: SlotCosts, num_slots: int, seconds: float, *, reads_reward: bool = True
) -> Ledger:
    """Ledger of a run of only the first `num_slots` particles.

    Args:
        slots: costs per slot of a run that never resampled.
        num_slots: number of particles of the smaller run.
        seconds: wall-clock time, which cannot be derived from the slots.
        reads_reward: False for a method that does not use the reward.
    """
    prompts = slots.num_prompts(num_slots)
    flops = prompts * slots.prompt_flops + slots.flops[:num_slots].sum()
    reward_tokens = slots.reward_tokens[:num_slots].sum()
    reward_tokens += prompts * slots.prompt_reward_tokens
    reward_flops = slots.reward_flops[:num_slots].sum()
    reward_flops += prompts * slots.prompt_reward_flops
    return Ledger(
        rollouts=num_slots,
        generated_tokens=int(slots.generated_tokens[:num_slots].sum()),
        reward_tokens=int(reward_tokens) if reads_reward else 0,
        flops=float(flops + reward_flops) if reads_reward else float(flops),
        seconds=seconds,
        sent_tokens=sum_of_first(slots.sent_tokens, num_slots),
        cached_tokens=sum_of_first(slots.cached_tokens, num_slots),
        retokenized_steps=sum_of_first(slots.retokenized_steps, num_slots),
    )


def sum_of_first(counts: Int[np.ndarray, "N"] | None, number: int) -> int:
    """Sum of the first counts; 0 if there are none."""
    return 0 if counts is None else int(counts[:number].sum())


def add_ledgers(*ledgers: Ledger) -> Ledger:
    """Total ledger of several runs."""
    return Ledger(*map(sum, zip(*ledgers, strict=True)))


def join_slots(runs: Sequence[SlotCosts | None]) -> SlotCosts | None:
    """Costs per slot of several runs on one problem, each of which reads its prompt."""
    if any(run is None for run in runs):
        return None

    def join(parts: tuple[Any, ...]) -> Any:
        if any(part is None for part in parts):
            return None
        # The prompt is the same in all runs.
        is_by_slot = isinstance(parts[0], np.ndarray)
        return np.concatenate(parts) if is_by_slot else parts[0]

    known_runs = [run for run in runs if run is not None]
    columns: Any = zip(*known_runs, strict=True)
    each = len(known_runs[0].generated_tokens)
    return SlotCosts(*map(join, columns))._replace(slots_per_prompt=each)
