"""Supervised training of a tiny policy, from random weights, on worked solutions.

The loss is the mean negative log-likelihood of the tokens of solutions and their end
tokens; tokens of prompts do not count. Each step draws new problems of the training
split. The accuracy of the policy depends on the step at which training is stopped.
"""

import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from tsi.experiments.tasks import GeneratedTask
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.tokens.char_tokenizer import char_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer


def task_tokenizer(task: GeneratedTask) -> Tokenizer:
    """A tokenizer with one token per character, one for padding and one for the end."""
    return char_tokenizer(task.alphabet)


def max_length(task: GeneratedTask) -> int:
    """Length of a task's longest text in tokens: prompt, steps and end."""
    return task.max_prompt_tokens + task.max_steps * task.max_step_tokens


def draw_solutions(
    task: GeneratedTask, tokenizer: Tokenizer, size: int, seed: int, step: int
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Problems with worked solutions, a pure function of (seed, step).

    Returns:
        Token ids, padded on the right, and the mask of tokens that the loss counts.
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
    """Mean negative log-likelihood of the tokens in the mask."""
    tokens, is_learned = batch
    logits = model(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    weights = is_learned[:, 1:].astype(losses.dtype)
    return (losses * weights).sum() / weights.sum()


def tiny_config(
    task: GeneratedTask,
    tokenizer: Tokenizer,
    *,
    width: int,
    hidden: int,
    num_layers: int,
) -> DecoderConfig:
    """A configuration of four query heads, two key-value heads and tied embeddings."""
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
