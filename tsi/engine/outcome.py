"""From the tokens of a problem to texts by step, costs by slot, and answers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tsi.decoding.step_texts import texts_of_steps
from tsi.models.decoder_config import DecoderConfig
from tsi.reasoning.particles import Particles
from tsi.reasoning.target import ReasoningTarget
from tsi.results.ledger import SlotCosts


def flops_of(
    config: DecoderConfig | None, tokens: Any, context: Any, *, head: bool = False
) -> Any:
    """FLOPs of `tokens` tokens that attended to `context` positions in total.

    ``config.count_attended`` counts positions and takes attention windows into account.
    Tokens that are only read need no logits; the cost of a reward's head, one number
    per step, is neglected.
    """
    if config is None:
        return np.zeros_like(context)
    dense = config.flops_per_token(0.0, head=head)
    position = config.flops_per_token(1.0, head=head) - dense
    return dense * tokens + position * context


def texts_by_step(
    decode: Callable[[list[int]], str], particles: Particles
) -> list[list[str]]:
    """The steps of each row, which together are the text that the reward read."""
    texts = []
    rows = (
        particles.tokens,
        particles.step_ends,
        particles.lengths,
        particles.finished,
    )
    for tokens, step_ends, length, finished in zip(*map(np.asarray, rows), strict=True):
        ends = step_ends[(step_ends > 0) & (step_ends <= length)]
        texts.append(
            texts_of_steps(
                decode,
                tokens[:length].tolist(),
                sorted(set(ends.tolist())),
                finished=bool(finished),
            )
        )
    return texts


def slot_costs(
    cost: Any,
    prompt_length: int,
    read_length: int,
    target: ReasoningTarget,
    params: Any,
) -> SlotCosts:
    """Cost of each slot of a problem, and of the problem's prompt, which is read once.

    Args:
        cost: counts of tokens and positions by slot.
        prompt_length: tokens of the prompt, as the policy reads it.
        read_length: tokens of the prompt, as the reward reads it.
        target: policy, reward and boundary.
        params: weights.
    """
    policy, reader = params.policy.config, target.reward.reader(params)
    prompt_context = policy.count_attended(0, prompt_length)
    reward_prompt, reward_flops = 0, 0.0
    if reader is not None and target.reward.reads_prompts:
        reward_prompt = read_length
        attended = reader.count_attended(0, read_length)
        reward_flops = float(flops_of(reader, read_length, attended))
    return SlotCosts(
        generated_tokens=cost.generated,
        reward_tokens=cost.reward_read,
        flops=(
            flops_of(policy, cost.generated, cost.generated_context, head=True)
            + flops_of(policy, cost.repeated, cost.repeated_context, head=True)
        ),
        reward_flops=flops_of(reader, cost.reward_read, cost.reward_context),
        prompt_reward_tokens=reward_prompt,
        prompt_flops=float(flops_of(policy, prompt_length, prompt_context)),
        prompt_reward_flops=reward_flops,
    )


def drop_weightless(
    answers: Sequence[str | None], log_weights: Float[np.ndarray, "K"]
) -> list[str | None]:
    """Answers of an explorer's members; None for members without weight.

    Members without weight are padding or were rejected by a search. A vote must not
    count them, unless no member has weight.
    """
    weightless = np.isneginf(log_weights)
    if weightless.all():
        return list(answers)
    return [
        None if zero else answer
        for answer, zero in zip(answers, weightless, strict=True)
    ]


def count_members(members: Int[np.ndarray, "K"], flags: Bool[np.ndarray, "K"]) -> int:
    """Number of distinct flagged prefixes; a prefix may be a member twice."""
    return len(set(np.asarray(members)[np.asarray(flags)].tolist()))
