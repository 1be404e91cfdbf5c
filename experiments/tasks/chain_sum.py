"""reasoning-gym's chain_sum for chat models: short sums, one equation per line.

The dataset (Apache-2.0, package ``reasoning-gym``, extra ``tasks``) gives expressions
of one-digit terms with + and −. The prompt shows three worked examples as earlier turns
of the chat, because a small model follows examples better than an instruction. Limits
are in tokens. A chat model may end a solution anywhere, so without a line "Answer: ..."
the last number of the text is the answer.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.equations import judge_equations, value_of
from tsi.experiments.tasks.generated import (
    DELIMITER,
    GeneratedTask,
    distinct_problems,
)
from tsi.experiments.tasks.prompts import PromptFormat
from tsi.experiments.tasks.task import Split
from tsi.problem import Problem

SYSTEM = "Work from left to right, one equation per line. Then give the answer."
EXAMPLES = (
    ("2 + 9 - 4", "2 + 9 = 11\n11 - 4 = 7\nAnswer: 7"),
    ("3 - 8", "3 - 8 = -5\nAnswer: -5"),
    ("6 - 1 + 7 + 5", "6 - 1 = 5\n5 + 7 = 12\n12 + 5 = 17\nAnswer: 17"),
)
DATASET_SIZE = 2**31 - 1
"""Number of problems per seed; each is generated when it is requested."""

_PROMPT = re.compile(r"\d( [-+] \d){1,3}")
_ANSWER = re.compile(r"Answer: ?([-−]?\d{1,9})(?!\d)")
_NUMBER = re.compile(r"(?<!\d)[-−]?\d{1,9}(?!\d)")


def dataset_problems(count: int, seed: int) -> list[Problem]:
    """The dataset's first problems of a seed, numbered from 0; some occur repeatedly.

    Raises:
        ConfigurationError: the package ``reasoning-gym`` is not installed.
    """
    return list(itertools.islice(_draws(seed), count))


def problems(
    split: Split, count: int | None, seed: int | Sequence[int]
) -> list[Problem]:
    """Distinct problems of two to four one-digit terms.

    Raises:
        ConfigurationError: the package ``reasoning-gym`` is not installed, or the
            dataset has fewer problems.
    """
    first = int(np.random.default_rng(seed).integers(DATASET_SIZE))
    draws = ((problem.prompt, problem) for problem in _draws(first))
    return distinct_problems(draws, split, count)


def problem(prompt: str) -> Problem:
    """The problem of an expression.

    Raises:
        ConfigurationError: the prompt is not a sum of two to four one-digit terms.
    """
    if not _PROMPT.fullmatch(prompt):
        raise ConfigurationError(
            f"{prompt!r} is not a problem of chain_sum; write two to four digits with "
            "+ or - and spaces between them, as in '2 + 9 - 4'."
        )
    return Problem(0, prompt, str(value_of(prompt)))


def solution(problem: Problem, rng: np.random.Generator) -> str:
    """One equation per operation, from left to right, then the answer.

    >>> print(solution(Problem(0, "2 + 9 - 4", "7"), np.random.default_rng(0)))
    2 + 9 = 11
    11 - 4 = 7
    Answer: 7
    """
    del rng
    first, *rest = problem.prompt.split(" ")
    lines, value = [], int(first)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        result = value_of(f"{value} {sign} {term}")
        lines.append(f"{value} {sign} {term} = {result}")
        value = result
    return "\n".join([*lines, f"Answer: {value}"])


def _draws(seed: int) -> Iterator[Problem]:
    """Problems of a seed, in the dataset's order."""
    dataset = _dataset(seed)
    for i in range(DATASET_SIZE):
        entry = dataset[i]
        yield Problem(i, entry["metadata"]["expression"], entry["answer"])


def _dataset(seed: int) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigurationError(
            "The task chain_sum needs the package reasoning-gym; install it with "
            "`pip install -e '.[tasks]'`."
        ) from error
    return reasoning_gym.create_dataset(
        "chain_sum",
        min_terms=2,
        max_terms=4,
        min_digits=1,
        max_digits=1,
        size=DATASET_SIZE,
        seed=seed,
    )


def extract(text: str) -> str | None:
    """The number after the last "Answer:", or else the last number of the text."""
    numbers = _ANSWER.findall(text) or _NUMBER.findall(text)
    return str(int(numbers[-1].replace("−", "-"))) if numbers else None


def is_correct(problem: Problem, answer: str | None) -> bool:
    """Whether an extracted answer is the right number."""
    return answer is not None and answer == problem.answer


def is_on_track(problem: Problem, prefix: str) -> bool:
    """Whether all equations so far are true, and the answer, if any, is right."""
    has_answer = _ANSWER.search(prefix) is not None
    return judge_equations(prefix) != "wrong" and (
        not has_answer or is_correct(problem, extract(prefix))
    )


CHAIN_SUM = GeneratedTask(
    name="chain_sum",
    alphabet="0123456789+-= \nAnswer:",
    max_prompt_tokens=len("1 + 1 + 1 + 1"),
    max_steps=6,
    max_step_tokens=16,
    problems=problems,
    problem=problem,
    solution=solution,
    extract=extract,
    is_correct=is_correct,
    is_on_track=is_on_track,
    max_tokens=48,
    delimiters=(DELIMITER,),
    prompts=PromptFormat(SYSTEM, EXAMPLES),
)
