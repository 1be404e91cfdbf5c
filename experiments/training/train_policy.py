"""Supervised training of a tiny policy on a task's worked solutions, from scratch.

The loss is the mean negative log-likelihood of the solution's tokens and of the end
token; prompts are read, not learned. Each step draws new problems of the training
split: nothing is seen twice on purpose, and how good the policy gets is a matter of
when training stops.
"""

import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from tsi.experiments.tasks import Task
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer


def task_tokenizer(task: Task) -> Tokenizer:
    """One token a character, besides padding and the end of a solution."""
    return char_tokenizer(task.alphabet)


def max_length(task: Task) -> int:
    """The longest text of a task in tokens: prompt, steps and end."""
    return task.max_prompt_tokens + task.max_steps * task.max_step_tokens


def draw_solutions(
    task: Task, tokenizer: Tokenizer, size: int, seed: int, step: int
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Problems with worked solutions, a pure function of (seed, step).

    Returns:
        Token ids, padded on the right, and the mask of tokens to learn.
    """
    problems = task.problems("train", size, (seed, step))
    rng = np.random.default_rng((seed, step, 1))
    tokens = np.full((size, max_length(task)), tokenizer.pad_id, np.int32)
    is_learned = np.zeros(tokens.shape, bool)
    for row, problem in enumerate(problems):
        prompt = tokenizer.encode_prompt(problem.prompt)
        solution = tokenizer.encode(task.solution(problem, rng))
        text = [*prompt, *solution, tokenizer.eos_ids[0]]
        tokens[row, : len(text)] = text
        is_learned[row, len(prompt) : len(text)] = True
    return tokens, is_learned


def solution_loss(
    model: LanguageModel, batch: tuple[Int[Array, "B T"], Bool[Array, "B T"]]
) -> Float[Array, ""]:
    """Mean negative log-likelihood of the learned tokens."""
    tokens, is_learned = batch
    logits = model(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    weights = is_learned[:, 1:].astype(losses.dtype)
    return (losses * weights).sum() / weights.sum()


def tiny_config(
    task: Task, tokenizer: Tokenizer, *, width: int, hidden: int, num_layers: int
) -> DecoderConfig:
    """Four query heads on two key-value heads, tied embeddings."""
    return DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        width=width,
        hidden=hidden,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_width=width // 4,
        max_length=max_length(task),
        eos_ids=tokenizer.eos_ids,
    )
