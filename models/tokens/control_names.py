"""The names of control tokens in texts: where they occur, and how they are hidden."""

import functools
import re
from collections.abc import Iterable

import tokenizers

from tsi.models.tokens.unused_character import unused_character

MARKS = range(0xE000, 0xF8FF)


class ControlNames:
    """The control tokens of a tokenizer.

    Attributes:
        ids: the id of each name.

    Args:
        backend: a tokenizer of the ``tokenizers`` package.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self.ids = {t.content: i for i, t in added.items() if t.special}
        special = [token for token in added.values() if token.special]
        self._strips_before = {t.content for t in special if t.lstrip}
        self._strips_after = {t.content for t in special if t.rstrip}

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the names, the longest first."""
        longest_first = sorted(self.ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    @functools.cached_property
    def names_by_id(self) -> dict[int, str]:
        """The name of each id."""
        return {id: name for name, id in self.ids.items()}

    def split(self, text: str) -> list[str]:
        """Text and control tokens in turn.

        Some control tokens strip the white space around them (Phi-3, Phi-4).
        """
        if not self.ids:
            return [text]
        pieces = self.pattern.split(text)
        for i in range(1, len(pieces), 2):
            if pieces[i] in self._strips_before:
                pieces[i - 1] = pieces[i - 1].rstrip()
            if pieces[i] in self._strips_after:
                pieces[i + 1] = pieces[i + 1].lstrip()
        return pieces


class NameMask:
    """Replaces the names of control tokens in some texts by marks.

    A chat template must not see a control token's name in a message, which it could
    not tell from the control tokens that it writes itself.

    Args:
        control: the names.
        texts: all texts in which they will be hidden.

    Raises:
        ConfigurationError: the texts have every private-use character.
    """

    def __init__(self, control: ControlNames, texts: Iterable[str]) -> None:
        self._control = control
        # A mark is made of a character that does not occur in the texts.
        mark = unused_character([*texts, *control.ids], MARKS)
        self._mark_of = {name: f"{mark}{i}{mark}" for i, name in enumerate(control.ids)}
        self._name_of = {marked: name for name, marked in self._mark_of.items()}
        self._marks = re.compile(f"{mark}\\d+{mark}")

    def hide(self, text: str) -> str:
        """The text with marks for names."""
        if not self._mark_of:
            return text
        return self._control.pattern.sub(lambda match: self._mark_of[match[0]], text)

    def restore(self, text: str) -> str:
        """The text with names for marks; marks of no name are dropped."""
        return self._marks.sub(lambda match: self._name_of.get(match[0], ""), text)
