"""Prompts for any language model on a generated task.

The embedded models were trained on their task and read the problem alone. The prompts
of other models begin with worked examples, as earlier turns of the chat or, without a
chat template, as text, because a small model follows examples better than an
instruction.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tsi.errors import ConfigurationError
from tsi.experiments.tasks import Task
from tsi.loading.model_checks import same_tokens
from tsi.models.loading.catalogue import MODELS, resolve
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.tokenizer import Tokenizer

NUM_EXAMPLES = 3
EXAMPLE_SEED = 1
STEP_SLACK = 4
"""Tokens that a step may have beyond its characters, for spaces."""
INSTRUCTION = "Solve each problem in the same form, one step on a line.\n\n"
JSON_WORDS = {"true": "true", "false": "false", "none": "null", "off": "false"}
"""Words for on and off, and how JSON writes them."""


def parse_switches(switches: Sequence[str]) -> dict[str, Any]:
    """Variables of a chat template from the command line, ``NAME=JSON`` each.

    A value that is not JSON is a text: ``reasoning_effort=high``.

    Raises:
        ConfigurationError: a switch has no name or value, occurs twice, or has a value
            such as Python's True.
    """
    values: dict[str, Any] = {}
    for switch in switches:
        name, equals, value = switch.partition("=")
        if not name.isidentifier() or not equals or not value:
            raise ConfigurationError(
                f"The template switch {switch!r} is not written NAME=VALUE, as in "
                "enable_thinking=false."
            )
        if name in values:
            raise ConfigurationError(f"The template switch {name} is given twice.")
        # As a text, each of them would count as true in a template.
        if value.lower() in JSON_WORDS and value not in JSON_WORDS.values():
            raise ConfigurationError(
                f"The template switch {name} is {value}; write it in JSON, "
                f"{name}={JSON_WORDS[value.lower()]}."
            )
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    return values


def draw_examples(task: Task) -> list[tuple[str, str]]:
    """Problems of the training split, each with a worked solution."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    return [
        (problem.prompt, task.solution(problem, rng))
        for problem in task.problems("train", NUM_EXAMPLES, EXAMPLE_SEED)
    ]


def example_encoder(task: Task, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """A function from a prompt to the token ids of examples and prompt."""
    examples = draw_examples(task)
    if tokenizer.chat_template is None:
        # The end token after each example shows a base model where solutions end.
        end = list(tokenizer.eos_ids[:1])
        start = (
            [tokenizer.bos_id]
            if tokenizer.add_bos and tokenizer.bos_id is not None
            else []
        )
        prefix = start + tokenizer.encode(INSTRUCTION)
        for prompt, solution in examples:
            prefix += tokenizer.encode(f"{prompt}\n{solution}") + end
        return lambda prompt: prefix + tokenizer.encode(f"{prompt}\n")
    turns = []
    for prompt, solution in examples:
        turns += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": solution},
        ]
    # Not every template supports a system message.
    turns[0]["content"] = INSTRUCTION + turns[0]["content"]
    return lambda prompt: tokenizer.encode_chat(
        [*turns, {"role": "user", "content": prompt}]
    )


def is_trained_on(task: Task, tokenizer: Tokenizer) -> bool:
    """Whether a model has the tokens of the task's own models, and needs no examples.

    Raises:
        CheckpointError: the task's own models are missing.
    """
    own = f"{task.name}-reward"
    return own in MODELS and same_tokens(tokenizer, load_tokenizer(resolve(own)))


def prompt_encoder(task: Task, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """A function from a prompt to token ids, with examples unless the model needs none.

    If the task has its own `prompt_encoder`, that is used.

    Raises:
        CheckpointError: the task's own models are missing.
    """
    if task.prompt_encoder is not None:
        return task.prompt_encoder(tokenizer)
    if is_trained_on(task, tokenizer):
        return tokenizer.encode_prompt
    return example_encoder(task, tokenizer)
