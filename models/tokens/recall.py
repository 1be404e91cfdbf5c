"""Ids of texts that have been encoded before, for texts that grow.

A solution is rendered anew after each step, and most of the texts that are encoded for
it are those of the time before, or begin with them. Texts are met in the order in which
they were encoded then: an equal one is not encoded again, and one that has grown from a
word's end on (:mod:`tsi.models.tokens.word_ends`). The ids are those of the whole text.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from tsi.models.tokens.word_ends import is_word_end, last_word_end


@runtime_checkable
class Encoder(Protocol):
    """What is asked of a tokenizer."""

    @property
    def has_word_ends(self) -> bool:
        """Whether texts may be cut at a word's end."""

    def encode_text(self, text: str, at_start: bool, *, cut: bool = False) -> list[int]:
        """Ids of a text without control tokens.

        Args:
            text: any.
            at_start: whether no text stands before it.
            cut: whether it has been cut from what stands before it, at a word's end.
        """


class Piece(NamedTuple):
    """A text that has been encoded, in parts that were cut at words' ends."""

    encoder: Encoder
    at_start: bool
    parts: tuple[tuple[str, tuple[int, ...]], ...]


class Recall:
    """Texts that are encoded one after another, as some were before.

    Attributes:
        pieces: those of this time.

    Args:
        past: those of the time before, in order.
    """

    def __init__(self, past: Sequence[Piece] = ()) -> None:
        self._past = past
        self.pieces: list[Piece] = []

    def encode(self, encoder: Encoder, text: str, at_start: bool) -> list[int]:
        """Ids of the next text."""
        number = len(self.pieces)
        old = self._past[number] if number < len(self._past) else None
        if old is None or old.encoder is not encoder or old.at_start != at_start:
            old = Piece(encoder, at_start, ())
        piece = _grown(old, text)
        self.pieces.append(piece)
        return [id for _, ids in piece.parts for id in ids]


def _grown(old: Piece, text: str) -> Piece:
    encoder, at_start, _ = old
    place, kept = 0, []
    for part in old.parts:
        end = place + len(part[0])
        whole = end == len(text) or (encoder.has_word_ends and is_word_end(text, end))
        if not whole or not text.startswith(part[0], place):
            break
        place = end
        kept.append(part)
    rest = text[place:]
    end = last_word_end(rest) if encoder.has_word_ends else 0
    for new in (rest[:end], rest[end:]):
        if new or not (kept or text):
            ids = encoder.encode_text(new, at_start and not place, cut=place > 0)
            kept.append((new, tuple(ids)))
            place += len(new)
    return Piece(encoder, at_start, tuple(kept))


_current: contextvars.ContextVar[Recall | None] = contextvars.ContextVar(
    "recall", default=None
)


def current() -> Recall | None:
    """What this thread encodes now, if it recalls what was before."""
    return _current.get()


@contextlib.contextmanager
def recalling(past: Sequence[Piece]) -> Iterator[Recall]:
    """Texts that are encoded within are those of the past, or have grown from them."""
    recall = Recall(past)
    token = _current.set(recall)
    try:
        yield recall
    finally:
        _current.reset(token)
