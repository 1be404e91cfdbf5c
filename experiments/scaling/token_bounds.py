"""Bounds on the tokens of a run, before it starts."""

from tsi.experiments.scaling.method_list import Method
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
