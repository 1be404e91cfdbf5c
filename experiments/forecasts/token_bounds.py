"""Bounds on the tokens of a run, before it starts."""

from typing import NamedTuple

import numpy as np

from tsi.experiments.plans.method_list import Method
from tsi.explorer import Plan
from tsi.reasoning.limits import SolutionLimits
from tsi.reasoning.target import ReasoningTarget


def most_tokens(
    method: Method,
    plan: Plan,
    limits: ReasoningTarget | SolutionLimits,
    problems: int,
) -> int:
    """The maximum number of tokens that a method can draw.

    A row that never changes its past draws one solution. After resampling or a search's
    turn, a row may continue a shorter solution, so that only steps are bounded.

    Args:
        method: for its rows.
        plan: of the method's sampler at its budget.
        limits: of a step and of a solution.
        problems: number of problems.
    """
    tokens = plan.turns * limits.max_step_tokens
    if method.never_resamples or method.is_deterministic:
        tokens = min(tokens, limits.max_tokens)
    return problems * plan.rows * tokens


class Reading(NamedTuple):
    """How a server reads texts.

    Attributes:
        prompt: tokens of a prompt.
        is_cached: whether it finds the prefixes that it has read or written in a cache.
        question: tokens of a judge's question; None if no server judges.
        judge_is_cached: the same as `is_cached`, of the server that judges.
        judge_is_apart: whether that is another server than the policy's.
    """

    prompt: float
    is_cached: bool
    question: int | None = None
    judge_is_cached: bool = False
    judge_is_apart: bool = False


def tokens_read(
    reading: Reading, problems: int, steps: int, prefix: float, step: float
) -> tuple[float, float]:
    """Tokens that servers read anew to draw steps, and to judge them.

    Args:
        reading: how they are read.
        problems: number of problems.
        steps: number of steps of all problems.
        prefix: mean tokens of a solution before a step.
        step: mean tokens of a step.
    """
    prompt, question = reading.prompt, reading.question
    sent = problems * prompt if reading.is_cached else steps * (prompt + prefix)
    if question is None:
        return sent, 0.0
    if not reading.judge_is_cached:
        return sent, steps * (prompt + prefix + step + question)
    # A server of its own has not read the prompts that the policy's has read.
    first = problems * prompt if reading.judge_is_apart else 0.0
    return sent, first + steps * (step + question)


def longest_prefix(plan: Plan, limits: SolutionLimits) -> float:
    """Mean tokens before a step, if every step is as long as the limits allow."""
    turns = np.arange(plan.turns)
    return float(np.minimum(turns * limits.max_step_tokens, limits.max_tokens).mean())
