"""Any language model on a generated task: shown examples, judged by itself.

The models that ship were trained on their task and read a bare problem. Others are
shown worked problems first, as earlier turns of the chat or, without a chat template,
as text, for a small model follows a form better than an instruction. Where no reward
model reads its tokens, the policy judges its own prefixes
(:class:`tsi.rewards.reward.SelfJudge`).
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tsi.decoding.step_texts import num_common
from tsi.errors import ConfigurationError
from tsi.experiments.tasks import Task
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.rewards.reward import SelfJudge

EXAMPLES = 3
EXAMPLE_SEED = 1
STEP_SLACK = 4
"""Tokens of a step beyond its characters: spaces that a language model may add."""
INSTRUCTION = "Solve each problem in the same form, one step on a line.\n\n"
JUDGE_QUESTION = "Is every line above right? Answer Yes or No."
ANSWERS = ("Yes", "No")
PYTHON = {"true": "true", "false": "false", "none": "null", "off": "false"}
"""Words for what is off or on, and how JSON has them."""


def parse_switches(switches: Sequence[str]) -> dict[str, Any]:
    """Variables of a chat template as a command line has them: ``NAME=JSON``.

    A value that is no JSON is a text: ``reasoning_effort=high``.

    Raises:
        ConfigurationError: one has no name or value, is there twice, or is written as
            in Python.
    """
    found: dict[str, Any] = {}
    for switch in switches:
        name, equals, value = switch.partition("=")
        if not name.isidentifier() or not equals or not value:
            raise ConfigurationError(
                f"The template switch {switch!r} is not written NAME=VALUE, as in "
                "enable_thinking=false."
            )
        if name in found:
            raise ConfigurationError(f"The template switch {name} is there twice.")
        # As a text each of them would be true in a template.
        if value.lower() in PYTHON and value not in PYTHON.values():
            raise ConfigurationError(
                f"The template switch {name} is {value}; write it as JSON does, "
                f"{name}={PYTHON[value.lower()]}."
            )
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def worked_problems(task: Task) -> list[tuple[str, str]]:
    """Problems of the training split, with their solutions."""
    rng = np.random.default_rng(EXAMPLE_SEED)
    return [
        (problem.prompt, task.solution(problem, rng))
        for problem in task.problems("train", EXAMPLES, EXAMPLE_SEED)
    ]


def encoder(task: Task, tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """From a problem to the token ids of examples and problem."""
    worked = worked_problems(task)
    if tokenizer.chat_template is None:
        # The end token after each example shows a base model where to stop.
        end = list(tokenizer.eos_ids[:1])
        start = (
            [tokenizer.bos_id]
            if tokenizer.add_bos and tokenizer.bos_id is not None
            else []
        )
        shown = start + tokenizer.encode(INSTRUCTION)
        for prompt, solution in worked:
            shown += tokenizer.encode(f"{prompt}\n{solution}") + end
        return lambda prompt: shown + tokenizer.encode(f"{prompt}\n")
    turns = []
    for prompt, solution in worked:
        turns += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": solution},
        ]
    # Not every template has a place for a system message.
    turns[0]["content"] = INSTRUCTION + turns[0]["content"]
    return lambda prompt: tokenizer.encode_chat(
        [*turns, {"role": "user", "content": prompt}]
    )


def self_judge(tokenizer: Tokenizer, question: str = JUDGE_QUESTION) -> SelfJudge:
    """The policy's one-token judgement of its own text, asked in its own format.

    The ids are those of a solution, the question and an answer, encoded together, since
    a space before the answer is part of its token for most tokenizers, and not for all.
    What the two answers have in common belongs to the question.

    Args:
        tokenizer: of the policy.
        question: to be answered by Yes or No.

    Raises:
        ConfigurationError: the chat template drops what was said or answered.
    """
    said = "7 plus 8 is 15"
    if tokenizer.chat_template is None:
        rests = [f"\n{question}\nAnswer: {answer}" for answer in ANSWERS]
    else:
        turns = [
            {"role": "user", "content": "7+8"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": question},
        ]
        rests = []
        for answer in ANSWERS:
            answered = [*turns, {"role": "assistant", "content": answer}]
            text = tokenizer.render(answered, add_generation_prompt=False)
            _, found, rest = text.rpartition(said)
            if not found:
                raise ConfigurationError(
                    f"The chat template of {tokenizer.name} drops what the assistant "
                    "has said, so that the model cannot judge it; name a reward model."
                )
            rests.append(rest)
    yes, no = (tokenizer.encode(said + rest, allow_special=True) for rest in rests)
    begin, end = num_common(tokenizer.encode(said), yes), num_common(yes, no)
    if end == min(len(yes), len(no)):
        raise ConfigurationError(
            f"The tokenizer of {tokenizer.name} or its chat template makes no "
            "difference between the answers Yes and No, so that the model cannot judge "
            "itself; name a reward model."
        )
    return SelfJudge(tuple(yes[begin:end]), yes[end], no[end])
