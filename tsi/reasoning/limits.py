"""How long a solution may be."""

from typing import NamedTuple


class SolutionLimits(NamedTuple):
    """Limits of a solution, of which the first that is reached counts.

    Attributes:
        max_steps: M; a solution with so many steps is truncated.
        max_step_tokens: C; a step is cut after that many tokens and the next begins.
        max_tokens: T; a solution that reaches it without an end token is truncated.
    """

    max_steps: int
    max_step_tokens: int
    max_tokens: int
