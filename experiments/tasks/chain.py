"""Chain arithmetic: 3 to 7 operations on single digits, left to right, modulo 100.

    prompt    7*8+5-9:
    solution  *8=56
              +5=61
              -9=52

No precedence: each line applies the next operation to the previous result. Every
result is taken modulo 100, so 3-9 is 94 and 56*9 is 4. An error in any line makes the
answer wrong, except for rare errors that a later factor cancels modulo 100, so the
accuracy of a sample falls with the length of the chain.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.generated import (
    DELIMITER,
    GeneratedTask,
    distinct_problems,
)
from tsi.experiments.tasks.task import Split
from tsi.problem import Problem

MODULUS = 100
MIN_STEPS, MAX_STEPS = 3, 7
PROMPT = re.compile(r"[1-9](?:[-+*][1-9])+:?")
LINE = re.compile(r"([-+*][1-9])=(0|[1-9]\d?)")


def apply(operation: str, value: int) -> int:
    """Apply an operation, a sign and a digit such as ``"*8"``, modulo 100."""
    sign, digit = operation[0], int(operation[1])
    if sign == "*":
        return value * digit % MODULUS
    return (value + digit if sign == "+" else value - digit) % MODULUS


def problem(prompt: str) -> Problem:
    """Parse a chain such as ``"7*8+5-9"``; the final colon is optional."""
    text = prompt.replace(" ", "")
    num_steps = len(text.rstrip(":")) // 2
    if not PROMPT.fullmatch(text) or not MIN_STEPS <= num_steps <= MAX_STEPS:
        raise ConfigurationError(
            f"{prompt!r} is not a chain problem: write {MIN_STEPS} to {MAX_STEPS} "
            "operations +, - or * on the digits 1 to 9, such as '7*8+5-9'."
        )
    text = text.rstrip(":")
    operations = [text[i : i + 2] for i in range(1, len(text), 2)]
    value = int(text[0])
    for operation in operations:
        value = apply(operation, value)
    data = {"start": int(text[0]), "operations": operations}
    return Problem(0, text + ":", str(value), data)


def draws(
    rng: np.random.Generator, min_steps: int = MIN_STEPS
) -> Iterator[tuple[str, Problem]]:
    """An infinite stream of problems; the chain itself is a problem's identity."""
    while True:
        num_steps = rng.integers(min_steps, MAX_STEPS + 1)
        digits = rng.integers(1, 10, num_steps + 1)
        signs = rng.integers(0, 3, num_steps)
        chain = str(digits[0]) + "".join(
            f"{'+-*'[sign]}{digit}"
            for sign, digit in zip(signs, digits[1:], strict=True)
        )
        yield chain, problem(chain)


def problems(
    split: Split, count: int | None, seed: int | Sequence[int]
) -> list[Problem]:
    """Distinct problems of a split; a shorter list is a prefix of a longer one."""
    return distinct_problems(draws(np.random.default_rng(seed)), split, count)


def long_problems(
    split: Split, count: int | None, seed: int | Sequence[int]
) -> list[Problem]:
    """Distinct problems of the longest chains, which samples seldom get right."""
    rng = np.random.default_rng(seed)
    return distinct_problems(draws(rng, MAX_STEPS), split, count)


def solution(problem: Problem, rng: np.random.Generator) -> str:
    """The only worked solution; ``rng`` is not used."""
    value, lines = problem.data["start"], []
    for operation in problem.data["operations"]:
        value = apply(operation, value)
        lines.append(f"{operation}={value}")
    return DELIMITER.join(lines)


def extract(text: str) -> str | None:
    """The result in the last line of a finished text."""
    match = LINE.fullmatch(text.split(DELIMITER)[-1])
    return match[2] if match else None


def is_correct(problem: Problem, answer: str | None) -> bool:
    """Whether an extracted answer is the chain's value."""
    return answer == problem.answer


def is_on_track(problem: Problem, prefix: str) -> bool:
    """Whether the other operations lead from the prefix's last result to the answer.

    The prefix must follow the chain's operations in order. An error that a later factor
    cancels modulo 100 counts as on track.
    """
    operations = problem.data["operations"]
    if prefix and not prefix.endswith(DELIMITER):
        lines = prefix.split(DELIMITER)
        if len(lines) != len(operations):
            return False
    else:
        lines = prefix.split(DELIMITER)[:-1]
        if len(lines) >= len(operations):
            return False
    matches = [LINE.fullmatch(line) for line in lines]
    if any(
        match is None or match[1] != operation
        for match, operation in zip(matches, operations, strict=False)
    ):
        return False
    value = int(matches[-1][2]) if matches and matches[-1] else problem.data["start"]
    for operation in operations[len(lines) :]:
        value = apply(operation, value)
    return str(value) == problem.answer


RULES = (
    "Apply the operations from left to right, one per line, without precedence. Take "
    "every result modulo 100, so that it is from 0 to 99: 3-9 is 94 and 56*9 is 4. "
    "Write each line as the operation, an equals sign and the result, such as *8=56, "
    "and stop after the last operation."
)

CHAIN = GeneratedTask(
    name="chain",
    alphabet="0123456789+-*=:\n",
    max_prompt_tokens=2 * MAX_STEPS + 2,
    max_steps=MAX_STEPS,
    max_step_tokens=len("*9=99\n"),
    problems=problems,
    problem=problem,
    solution=solution,
    extract=extract,
    is_correct=is_correct,
    is_on_track=is_on_track,
    max_tokens=None,
    delimiters=(DELIMITER,),
    rules=RULES,
)

CHAIN_LONG = dataclasses.replace(
    CHAIN, name="chain_long", problems=long_problems, models="chain"
)
