"""The memory that programs need to read prompts."""

from typing import Any

from tsi.models.prefill import prefill_bytes
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.text_reader import TextReader


def bytes_to_read(
    target: ReasoningTarget,
    policy: Any,
    reward_model: Any,
    prompts: int,
    width: int,
    questions: Any,
) -> int:
    """The maximum number of bytes that programs need to read prompts, without weights.

    Args:
        target: for its reward.
        policy: the language model, or its shapes.
        reward_model: its weights, or their shapes, or None.
        prompts: number of prompts that are read together.
        width: positions of the policy's prompts.
        questions: the result of the reward's `prepare`, for all prompts.
    """
    unread: Any = None
    params = ReasoningParams(policy, reward_model, unread, unread)
    models: list[tuple[Any, Any, int]] = [(policy, policy.config, width)]
    reward = target.reward
    if reward.reads_prompts:
        # A model with another tokenizer has prompts of another width.
        reads_questions = isinstance(reward, TextReader) and questions is not None
        read = questions.tokens.shape[1] if reads_questions else width
        models.append((reward_model, reward.reader(params), read))
    return sum(
        prefill_bytes(
            config,
            prompts,
            positions,
            model.trunk.dtype.itemsize,
            cached=model.trunk.cache_dtype.itemsize,
        )
        for model, config, positions in models
        # The state of a custom reward is not known.
        if config is not None and hasattr(model, "trunk")
    )
