"""Encode the prompts of problems, check them against the models, and pad them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tsi.decoding.vocabularies import check_prompt
from tsi.errors import ConfigurationError, PromptTooLongError
from tsi.models.buckets import bucket_size
from tsi.problem import Problem
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.reward import Prompts

PROMPT_UNIT = 16
"""The smallest width of prompts; see :func:`tsi.models.buckets.bucket_size`."""


def encode_prompt(
    problem: Problem,
    encode: Callable[[str], list[int]],
    target: ReasoningTarget,
    num_rows: int,
    context: int,
) -> list[int]:
    """A problem's prompt as token ids.

    Args:
        problem: the problem.
        encode: text to ids.
        target: for its token limit and the further positions of its reward.
        num_rows: number of ids for which all models have rows.
        context: number of positions that all models can read.

    Raises:
        ConfigurationError: it has no tokens, or tokens that a model lacks.
        PromptTooLongError: prompt and solution exceed the context.
    """
    tokens = encode(problem.prompt)
    check_prompt(problem.id, tokens, num_rows)
    question_size = getattr(target.reward, "positions_beyond", 0)
    limit = context - target.max_tokens - question_size
    if not tokens:
        raise ConfigurationError(
            f"The prompt of problem {problem.id!r} has no tokens, and a policy "
            "needs at least one. Give the problem a prompt."
        )
    if len(tokens) > limit:
        question = (
            f" and a question of {question_size} to the judge" if question_size else ""
        )
        room = f"room for 1 to {limit}" if limit > 0 else "no room for a prompt"
        raise PromptTooLongError(
            f"The prompt of problem {problem.id!r} has {len(tokens)} tokens; with "
            f"max_tokens={target.max_tokens}{question} the models' context of "
            f"{context} leaves {room}. Shorten the prompt or lower max_tokens."
        )
    return tokens


def pad_prompts(prompts: list[list[int]]) -> Prompts:
    """Prompts in one array, padded so that few widths are compiled."""
    width = bucket_size(max(map(len, prompts)), PROMPT_UNIT)
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths: Any = np.asarray([len(prompt) for prompt in prompts], np.int32)
    padded: Any = tokens
    return Prompts(padded, lengths)
