"""Options of the command line for the ends of steps and solutions."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError
from tsi.experiments.worlds.forced_text import ForcedText, forced_text

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
"""Characters for the escapes that a shell passes on unchanged."""


class StepEnds(NamedTuple):
    """Ends in addition to the task's own delimiter and the policy's end tokens.

    Attributes:
        delimiters: end a step; the task's own delimiter, if there are none.
        stop_strings: end the solution.
        min_tokens: a step has at least this many tokens; delimiters before that are
            ignored.
        forced: text that is forced at a limit; None for none.
    """

    delimiters: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    min_tokens: int = 1
    forced: ForcedText | None = None

    def settings(self) -> dict[str, Any]:
        r"""The settings that rows record, without those of forced ends.

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
    r"""Step ends from strings with the escapes ``\n``, ``\t``, ``\r`` and ``\\``.

    Raises:
        ConfigurationError: a string is ambiguous or not UTF-8, or the forced end is
            refused (see :func:`tsi.experiments.worlds.forced_text.forced_text`).

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
            f"The string {text!r} is not valid UTF-8; give another."
        ) from error
    # \neq and \times do not begin with a new line and a tab.
    unescaped = re.sub(r"\\\\", "|", text)
    if match := re.search(r"\\[ntr][A-Za-z]\w*", unescaped):
        word = match.group()
        raise ConfigurationError(
            f"The string {text!r} is ambiguous: {word} may be a command with a "
            f"backslash, or {word[:2]} followed by a word. Write \\{word} for the "
            f"command; for the other, let the shell make the character: $'{word}'."
        )
    return re.sub(r"\\([ntr\\])", lambda match: ESCAPES[match.group(1)], text)
