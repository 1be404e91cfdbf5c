"""Countdown: combine 3 or 4 given numbers with +, - and * to reach a target.

    prompt    3,5,7,2>24:
    solution  3*5=15,7,2
              15+7=22,2
              22+2=24

Each line combines two of the remaining numbers. After the equals sign are the numbers
that remain now, the new one first. Every number is used exactly once and every result
is within 0 to 99. Most first moves of a hard problem lead to a dead end, which a single
sample cannot leave and a search can.

Numbers go up to 20, because there are only ten thousand problems with numbers up to 9:
a policy memorises its training problems, and its errors on them, on which the reward
model is trained, differ from its errors on new problems.

The answer is the expression that the lines build, here ``((3*5)+7)+2``. Many different
expressions are right, and a text that only repeats the target has no answer.
"""

import ast
import dataclasses
import functools
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

MAX_GIVEN, MAX_NUMBER, MIN_TARGET = 20, 99, 10
MIN_COUNT, MAX_COUNT = 3, 4
NUMBER = r"(?:0|[1-9]\d?)"
PROMPT = re.compile(rf"({NUMBER}(?:,{NUMBER})*)>({NUMBER}):?")
LINE = re.compile(rf"({NUMBER})([-+*])({NUMBER})=({NUMBER}(?:,{NUMBER})*)")
EXPRESSION = re.compile(r"[0-9()+*-]{1,40}")

Numbers = tuple[int, ...]


def combine(left: int, sign: str, right: int) -> int | None:
    """The result of one operation, or None if it is outside 0 to 99."""
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    return result if 0 <= result <= MAX_NUMBER else None


def moves(numbers: Numbers) -> Iterator[tuple[int, str, int, Numbers]]:
    """Every way to combine two numbers: larger operand, sign, smaller one, the rest.

    The rest starts with the new number and keeps the order of the others.
    """
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            left, right = numbers[i], numbers[j]
            if left < right:
                left, right = right, left
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for sign in "+-*":
                result = combine(left, sign, right)
                if result is not None:
                    yield left, sign, right, (result, *rest)


@functools.cache
def reachable_targets(numbers: Numbers) -> int:
    """Targets that a sorted tuple of numbers can reach: bit t is set if t is one."""
    if len(numbers) == 1:
        return 1 << numbers[0]
    bits = 0
    for *_, rest in moves(numbers):
        bits |= reachable_targets(tuple(sorted(rest)))
    return bits


def is_solvable(numbers: Numbers, target: int) -> bool:
    """Whether the target can be reached from the numbers, by exhaustive search."""
    return bool(reachable_targets(tuple(sorted(numbers))) >> target & 1)


def draws(
    rng: np.random.Generator, min_count: int = MIN_COUNT
) -> Iterator[tuple[str, Problem]]:
    """An infinite stream of solvable problems; the identity ignores their order.

    The target is the result of random moves, so targets with more solutions are more
    frequent.
    """
    while True:
        count = rng.integers(min_count, MAX_COUNT + 1)
        given = tuple(map(int, rng.integers(1, MAX_GIVEN + 1, count)))
        numbers = given
        while len(numbers) > 1:
            choices = list(moves(numbers))
            numbers = choices[rng.integers(len(choices))][-1]
        if numbers[0] >= MIN_TARGET:
            yield f"{sorted(given)}>{numbers[0]}", make_problem(given, numbers[0])


def make_problem(numbers: Numbers, target: int) -> Problem:
    """The problem with these numbers in this order."""
    prompt = f"{','.join(map(str, numbers))}>{target}:"
    return Problem(0, prompt, str(target), {"numbers": list(numbers), "target": target})


def problem(prompt: str) -> Problem:
    """Parse a problem such as ``"3,5,7,2>24"``; the final colon is optional."""
    match = PROMPT.fullmatch(prompt.replace(" ", ""))
    numbers = tuple(map(int, match[1].split(","))) if match else ()
    counts = range(MIN_COUNT, MAX_COUNT + 1)
    if not match or len(numbers) not in counts or max(numbers) > MAX_GIVEN:
        raise ConfigurationError(
            f"{prompt!r} is not a countdown problem: write {MIN_COUNT} to {MAX_COUNT} "
            f"numbers of at most {MAX_GIVEN} and a target below 100, such as "
            "'3,5,7,2>24'."
        )
    return make_problem(numbers, int(match[2]))


def problems(
    split: Split, count: int | None, seed: int | Sequence[int]
) -> list[Problem]:
    """Distinct solvable problems; a shorter list is a prefix of a longer one."""
    return distinct_problems(draws(np.random.default_rng(seed)), split, count)


def problems_of_four(
    split: Split, count: int | None, seed: int | Sequence[int]
) -> list[Problem]:
    """Distinct solvable problems of four numbers; most moves lead to dead ends."""
    rng = np.random.default_rng(seed)
    return distinct_problems(draws(rng, MAX_COUNT), split, count)


def solution(problem: Problem, rng: np.random.Generator) -> str:
    """A random solution: each line is uniform among those that can still succeed.

    Raises:
        ConfigurationError: the problem has no solution.
    """
    numbers, target = tuple(problem.data["numbers"]), problem.data["target"]
    lines = []
    while len(numbers) > 1:
        choices = [move for move in moves(numbers) if is_solvable(move[3], target)]
        if not choices:
            raise ConfigurationError(f"{problem.prompt} has no solution.")
        left, sign, right, numbers = choices[rng.integers(len(choices))]
        lines.append(f"{left}{sign}{right}={','.join(map(str, numbers))}")
    return DELIMITER.join(lines)


def extract(text: str) -> str | None:
    """The expression that a finished text's lines build, in canonical form.

    Lines are not checked, so wrong arithmetic is included: an operand refers to the
    latest unused line that states it as its result, or else to a given number. Operands
    of + and * are sorted, so that 2+3 and 3+2 are one answer.
    """
    composites: list[tuple[str, str]] = []

    def operand(number: str) -> str:
        for index in range(len(composites) - 1, -1, -1):
            if composites[index][0] == number:
                return f"({composites.pop(index)[1]})"
        return number

    for line in text.split(DELIMITER):
        match = LINE.fullmatch(line)
        if match is None:
            return None
        operands = [operand(match[1]), operand(match[3])]
        if match[2] != "-":
            operands.sort()
        result = match[4].split(",")[0]
        composites.append((result, match[2].join(operands)))
    return composites[-1][1]


def evaluate(node: ast.expr) -> tuple[int, list[int]] | None:
    """Value and leaves of a parsed expression; None if a result is outside 0 to 99."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value, [node.value]
    signs = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
    if not isinstance(node, ast.BinOp) or type(node.op) not in signs:
        return None
    left, right = evaluate(node.left), evaluate(node.right)
    if left is None or right is None:
        return None
    value = combine(left[0], signs[type(node.op)], right[0])
    return None if value is None else (value, left[1] + right[1])


def is_correct(problem: Problem, answer: str | None) -> bool:
    """Whether an expression uses each given number once and equals the target.

    The expression is untrusted text: its length and characters are checked before it is
    parsed, and only +, - and * of integers are evaluated.
    """
    if answer is None or not EXPRESSION.fullmatch(answer):
        return False
    try:
        result = evaluate(ast.parse(answer, mode="eval").body)
    except SyntaxError:
        return False
    if result is None:
        return False
    value, leaves = result
    return value == problem.data["target"] and sorted(leaves) == sorted(
        problem.data["numbers"]
    )


def is_on_track(problem: Problem, prefix: str) -> bool:
    """Whether every line is legal and true, and the target can still be reached."""
    finished = bool(prefix) and not prefix.endswith(DELIMITER)
    numbers = sorted(problem.data["numbers"])
    for line in prefix.removesuffix(DELIMITER).split(DELIMITER) if prefix else []:
        match = LINE.fullmatch(line)
        if match is None:
            return False
        left, right = int(match[1]), int(match[3])
        for operand in (left, right):
            if operand not in numbers:
                return False
            numbers.remove(operand)
        available = list(map(int, match[4].split(",")))
        if available[0] != combine(left, match[2], right) or sorted(
            available[1:]
        ) != sorted(numbers):
            return False
        numbers = available
    if finished:
        return numbers == [problem.data["target"]]
    # With one number left the text must end; a delimiter makes it wrong.
    return len(numbers) > 1 and is_solvable(tuple(numbers), problem.data["target"])


RULES = (
    "Combine the numbers before > with +, - and * until one is left, the target after "
    ">. Use every number once; every result is from 0 to 99. Each line combines two of "
    "the numbers that remain, larger first, and after the equals sign names the "
    "numbers that remain then, the new one first, such as 3*5=15,7,2. Stop when one is "
    "left."
)

COUNTDOWN = GeneratedTask(
    name="countdown",
    alphabet="0123456789+-*=,>:\n",
    max_prompt_tokens=len("20,20,20,20>99:"),
    max_steps=MAX_COUNT - 1,
    max_step_tokens=len("20+20=40,20,20\n"),
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

COUNTDOWN_FOUR = dataclasses.replace(
    COUNTDOWN, name="countdown_four", problems=problems_of_four, models="countdown"
)
