"""Where steps and solutions end, as the command line says it."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError
from tsi.experiments.worlds.forced_text import ForcedText, forced_text

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
"""What stands behind a backslash that a shell hands over as it was typed."""


class StepEnds(NamedTuple):
    """What is asked for beside a task's own delimiter and the policy's end tokens.

    Attributes:
        delimiters: each ends a step; the task's own, if there are none.
        stop_strings: each ends the solution.
        min_tokens: a delimiter that comes sooner does not end the step.
        forced: what a solution must write at a limit; None for nothing.
    """

    delimiters: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    min_tokens: int = 1
    forced: ForcedText | None = None

    def settings(self) -> dict[str, Any]:
        r"""What rows depend on, of what is asked for; without what is forced.

        >>> StepEnds(stop_strings=("##",)).settings()
        {'stop_strings': ['##']}
        """
        options = {
            "delimiters": list(self.delimiters),
            "stop_strings": list(self.stop_strings),
            "min_step_tokens": self.min_tokens if self.min_tokens != 1 else None,
        }
        return {name: value for name, value in options.items() if value}


def step_ends(
    delimiters: Sequence[str],
    stop_strings: Sequence[str],
    min_tokens: int,
    *,
    forced_end: bool = False,
    forced_end_string: str | None = None,
    forced_end_tokens: int | None = None,
) -> StepEnds:
    r"""Strings as they were typed, with ``\n``, ``\t``, ``\r`` and ``\\`` read.

    Raises:
        ConfigurationError: a string can be read in two ways, or is not UTF-8, or what
            is forced is refused (see
            :func:`tsi.experiments.worlds.forced_text.forced_text`).

    >>> step_ends([r"\n\n", "## Step"], [], 1).delimiters
    ('\n\n', '## Step')
    """
    string = None if forced_end_string is None else _unescape(forced_end_string)
    return StepEnds(
        tuple(map(_unescape, delimiters)),
        tuple(map(_unescape, stop_strings)),
        min_tokens,
        forced_text(forced_end, string, forced_end_tokens),
    )


def _unescape(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"The string {text!r} is no text in UTF-8; give another."
        ) from error
    # As in \neq and \times, which are no new line and no tab.
    unescaped = re.sub(r"\\\\", "|", text)
    if match := re.search(r"\\[ntr][A-Za-z]\w*", unescaped):
        word = match.group()
        raise ConfigurationError(
            f"The string {text!r} has {word}, which may be a command that begins with "
            f"a backslash or {word[:2]} with a word behind it. Write \\{word} for the "
            f"first; for the second let the shell make the character, as in $'{word}'."
        )
    return re.sub(r"\\([ntr\\])", lambda match: ESCAPES[match.group(1)], text)
