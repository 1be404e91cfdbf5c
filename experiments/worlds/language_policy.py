"""Any language model on a generated task: shown examples.

The models that ship were trained on their task and read a bare problem. Others are
shown worked problems first, as earlier turns of the chat or, without a chat template,
as text, for a small model follows a form better than an instruction.
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
"""Tokens of a step beyond its characters: spaces that a language model may add."""
INSTRUCTION = "Solve each problem in the same form, one step on a line.\n\n"
JSON_WORDS = {"true": "true", "false": "false", "none": "null", "off": "false"}
"""Words for what is off or on, and how JSON has them."""


def parse_switches(switches: Sequence[str]) -> dict[str, Any]:
    """Variables of a chat template as a command line has them: ``NAME=JSON``.

    A value that is no JSON is a text: ``reasoning_effort=high``.

    Raises:
        ConfigurationError: one has no name or value, is there twice, or is written as
            in Python.
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
            raise ConfigurationError(f"The template switch {name} is there twice.")
        # As a text each of them would be true in a template.
        if value.lower() in JSON_WORDS and value not in JSON_WORDS.values():
            raise ConfigurationError(
                f"The template switch {name} is {value}; write it as JSON does, "
                f"{name}={JSON_WORDS[value.lower()]}."
            )
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    return values


def draw_examples(task: Task) -> list[tuple[str, str]]:
    """Problems of the training split, with their solutions."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    return [
        (problem.prompt, task.solution(problem, rng))
        for problem in task.problems("train", NUM_EXAMPLES, EXAMPLE_SEED)
    ]


def example_encoder(task: Task, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """From a problem to the token ids of examples and problem."""
    examples = draw_examples(task)
    if tokenizer.chat_template is None:
        # The end token after each example shows a base model where to stop.
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
    # Not every template has a place for a system message.
    turns[0]["content"] = INSTRUCTION + turns[0]["content"]
    return lambda prompt: tokenizer.encode_chat(
        [*turns, {"role": "user", "content": prompt}]
    )


def is_trained_on(task: Task, tokenizer: Tokenizer) -> bool:
    """Whether a model reads the tokens of the task's own models, and needs no examples.

    Raises:
        CheckpointError: the task's own models are not there.
    """
    own = f"{task.name}-reward"
    return own in MODELS and same_tokens(tokenizer, load_tokenizer(resolve(own)))


def prompt_encoder(task: Task, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """From a problem to token ids: bare for the task's own models, else with examples.

    A task that has a prompt format of its own decides alone.

    Raises:
        CheckpointError: the task's own models are not there.
    """
    if task.prompt_encoder is not None:
        return task.prompt_encoder(tokenizer)
    if is_trained_on(task, tokenizer):
        return tokenizer.encode_prompt
    return example_encoder(task, tokenizer)
