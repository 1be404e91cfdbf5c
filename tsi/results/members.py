r"""Members of lists, tuples, intervals and sets: "1, 2", "(1, 2]", "\{1, 2\}"."""

import re

_SEPARATOR = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|[()\[\]{}]")
_CLOSED_BY = {"(": ")]", "[": "])", "{": "}"}


def bracket_members(plain_text: str) -> tuple[str, list[str], str] | None:
    r"""The opening bracket, the members and the closing bracket.

    Args:
        plain_text: without markup; a set is in braces or in ``\{`` and ``\}``.

    Returns:
        None if the text has another form, or has one member in round or square
        brackets. Sets have the brackets ``\{`` and ``\}``.
    """
    if (
        plain_text.startswith("\\{")
        and plain_text.endswith("\\}")
        and len(plain_text) >= 4
    ):
        members = _split(plain_text[2:-2], words=False)
        return None if members is None else ("\\{", members, "\\}")
    if len(plain_text) < 2 or plain_text[-1] not in _CLOSED_BY.get(plain_text[0], ""):
        return None
    members = _split(plain_text[1:-1], words=False)
    if members is None or len(members) < 2:
        return None
    if plain_text[0] == "{":
        return "\\{", members, "\\}"
    if _CLOSED_BY[plain_text[0]][0] != plain_text[-1] and len(members) != 2:
        return None
    return plain_text[0], members, plain_text[-1]


def list_members(plain_text: str) -> list[str]:
    """The members of a list without brackets; the whole text if it is not a list."""
    members = _split(plain_text, words=True)
    if members is None or len(members) < 2 or not all(members):
        return [plain_text]
    return members


def _split(text: str, *, words: bool) -> list[str] | None:
    """Split at commas outside brackets, and at "and" and "or"; None if unbalanced."""
    members, depth, start = [], 0, 0
    for match in _SEPARATOR.finditer(text):
        mark = match.group()
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
            if depth < 0:
                return None
        elif depth == 0 and (words or mark in ",;"):
            members.append(text[start : match.start()].strip())
            start = match.end()
    if depth:
        return None
    members.append(text[start:].strip())
    # "1, 2, and 3" has nothing between the last comma and "and".
    return [
        member
        for i, member in enumerate(members)
        if member or not 0 < i < len(members) - 1
    ]
