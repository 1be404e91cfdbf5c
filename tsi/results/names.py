"""Names of variables in answers such as "x = 5" and "(x, y) = (1, 2)"."""

import re

_NAME = re.compile(
    r"(\\?[A-Za-z]\w{0,15}(?:_?\{\w{1,8}\})?(?:\(\w{1,8}(?:, ?\w{1,8}){0,4}\))?"
    r"|\([A-Za-z](?:, ?[A-Za-z]){1,4}\))(?: ?=(?!=) ?| is )(?=\S)"
)
_NEXT_EQUATION = re.compile(r"[,;]|(?<![A-Za-z])(?:and|or)(?![A-Za-z])")


def name_of(plain_text: str) -> tuple[str | None, str]:
    """The name and the value of an assignment; None and the text otherwise.

    In a chain, "x = y = 5", the name is the first and the value the last.

    Args:
        plain_text: without markup.
    """
    name, value = None, plain_text
    while match := _NAME.match(value):
        rest = value[match.end() :]
        if "=" in rest and _NEXT_EQUATION.search(rest):
            # Several equations: each has its own name.
            break
        name = name or match.group(1).replace(" ", "")
        value = rest
    return name, value


def drop_name(plain_text: str) -> str:
    """The value of an assignment; other texts are returned unchanged."""
    return name_of(plain_text)[1]
