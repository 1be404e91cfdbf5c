"""Where steps and solutions end, as the command line says it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

ESCAPES = {r"\n": "\n", r"\t": "\t", r"\r": "\r"}
"""What a shell hands over as it was typed."""


class StepEnds(NamedTuple):
    """What is asked for beside a task's own delimiter and the policy's end tokens.

    Attributes:
        delimiters: each ends a step; the task's own, if there are none.
        stop_strings: each ends the solution.
        min_tokens: a delimiter that comes sooner does not end the step.
    """

    delimiters: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    min_tokens: int = 1

    def settings(self) -> dict[str, Any]:
        r"""What rows depend on, of what is asked for.

        >>> StepEnds(stop_strings=("##",)).settings()
        {'stop_strings': ['##']}
        """
        asked = {
            "delimiters": list(self.delimiters),
            "stop_strings": list(self.stop_strings),
            "min_step_tokens": self.min_tokens if self.min_tokens != 1 else None,
        }
        return {name: value for name, value in asked.items() if value}


def step_ends(
    delimiters: Sequence[str], stop_strings: Sequence[str], min_tokens: int
) -> StepEnds:
    r"""Strings as they were typed, with ``\n``, ``\t`` and ``\r`` read.

    >>> step_ends([r"\n\n", "## Step"], [], 1).delimiters
    ('\n\n', '## Step')
    """
    return StepEnds(
        tuple(map(_read, delimiters)), tuple(map(_read, stop_strings)), min_tokens
    )


def _read(text: str) -> str:
    for typed, meant in ESCAPES.items():
        text = text.replace(typed, meant)
    return text
