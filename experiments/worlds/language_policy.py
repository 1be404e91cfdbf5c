"""Prompts for any language model on any task.

The embedded models were trained on their task, and their prompt is only the problem.
For other models, the prompt of a generated task begins with the rules of the task and
worked examples (:mod:`tsi.experiments.tasks.prompts`). Other tasks have their own
prompt format, or none.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.tasks.prompts import PromptFormat, format_encoder
from tsi.experiments.tasks.task import Task
from tsi.loading.model_checks import same_tokens
from tsi.models.loading.catalogue import MODELS, resolve
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.tokens.spelling import Spelling
from tsi.models.tokens.tokenizer import Tokenizer

Encoder = Callable[[Task, Spelling], Callable[[str], list[int]]]
"""From a task and the policy's spelling to a function from a prompt to token ids."""

NUM_EXAMPLES = 3
EXAMPLE_SEED = 1
STEP_SLACK = 4
"""Tokens that a step may have beyond its characters, for spaces."""
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


def draw_examples(task: GeneratedTask) -> list[tuple[str, str]]:
    """Problems of the training split, each with a worked solution."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    return [
        (problem.prompt, task.solution(problem, rng))
        for problem in task.problems("train", NUM_EXAMPLES, EXAMPLE_SEED)
    ]


def rules_and_examples(task: GeneratedTask) -> PromptFormat:
    """The rules of a generated task, and worked examples from its training split."""
    return PromptFormat(task.rules, tuple(draw_examples(task)))


def is_trained_on(task: Task, tokenizer: Spelling) -> bool:
    """Whether a model has the tokens of the task's own models, and needs no examples.

    Raises:
        CheckpointError: the task's own models are missing.
    """
    if not isinstance(task, GeneratedTask) or not isinstance(tokenizer, Tokenizer):
        return False
    own_reward = task.own_reward
    return own_reward in MODELS and same_tokens(
        tokenizer, load_tokenizer(resolve(own_reward))
    )


def prompt_format(task: Task, tokenizer: Spelling) -> PromptFormat | None:
    """The prompt format of a task for a policy; None for only the problem.

    Raises:
        CheckpointError: the task's own models are missing.
    """
    if task.prompts is not None:
        return task.prompts.check()
    if isinstance(task, GeneratedTask) and not is_trained_on(task, tokenizer):
        return rules_and_examples(task)
    return None


def prompt_encoder(task: Task, tokenizer: Spelling) -> Callable[[str], list[int]]:
    """A function from a problem to token ids, as `prompt_format` says.

    Raises:
        CheckpointError: the task's own models are missing.
    """
    format = prompt_format(task, tokenizer)
    if format is None:
        return tokenizer.encode_prompt
    return format_encoder(format, tokenizer)
