"""A character that can serve as a mark, because it occurs in no text."""

from collections.abc import Iterable

from tsi.errors import ConfigurationError


def unused_character(texts: Iterable[str], candidates: Iterable[int]) -> str:
    """The first of some characters that occurs in none of the texts.

    Args:
        texts: untrusted.
        candidates: code points.

    Raises:
        ConfigurationError: the texts have all of them.

    >>> unused_character(["ab", "c"], range(ord("a"), ord("z")))
    'd'
    """
    used_characters = set().union(*texts)
    for candidate in candidates:
        if chr(candidate) not in used_characters:
            return chr(candidate)
    raise ConfigurationError(
        "A text has every private-use character of Unicode, one of which must be free "
        "to mark a place in the prompt. Remove these characters from the text."
    )
