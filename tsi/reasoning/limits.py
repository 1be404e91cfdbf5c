"""How long a solution may be."""

from typing import NamedTuple


class SolutionLimits(NamedTuple):
    """Limits of a solution; the first one that is reached applies.

    Attributes:
        max_steps: M; a solution of M steps without an end is truncated.
        max_step_tokens: C; a step is cut after C tokens, and the next begins.
        max_tokens: T; a solution of T tokens without an end token is truncated.
    """

    max_steps: int
    max_step_tokens: int
    max_tokens: int
