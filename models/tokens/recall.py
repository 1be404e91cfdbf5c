"""Recall: reuse the ids of earlier encodings for texts that grow.

A solution is rendered again after each step, and most of its texts are those of the
previous rendering, or begin with them. Texts are matched in the order in which they are
encoded. An equal text is not encoded again; of a text that has grown, only the part
after the end of a word is (:mod:`tsi.models.tokens.word_ends`). The ids are those of
the whole text.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from tsi.models.tokens.word_ends import is_word_end, last_word_end


@runtime_checkable
class Encoder(Protocol):
    """The methods of a tokenizer that are used here."""

    @property
    def has_word_ends(self) -> bool:
        """Whether a text may be cut at the end of a word."""

    def encode_text(self, text: str, at_start: bool, *, cut: bool = False) -> list[int]:
        """Ids of a text without control tokens.

        Args:
            text: without control tokens.
            at_start: whether no text precedes it.
            cut: whether it was cut from the text before it at the end of a word.
        """


class Piece(NamedTuple):
    """An encoded text, in parts that were cut at the ends of words, with their ids."""

    encoder: Encoder
    at_start: bool
    parts: tuple[tuple[str, tuple[int, ...]], ...]


class Recall:
    """Encodes texts one after another and reuses the ids of earlier texts.

    Attributes:
        pieces: the texts encoded so far.

    Args:
        past: the pieces of the previous rendering, in order.
    """

    def __init__(self, past: Sequence[Piece] = ()) -> None:
        self._past = past
        self.pieces: list[Piece] = []

    def encode(self, encoder: Encoder, text: str, at_start: bool) -> list[int]:
        """Ids of the next text."""
        index = len(self.pieces)
        past = self._past[index] if index < len(self._past) else None
        if past is None or past.encoder is not encoder or past.at_start != at_start:
            past = Piece(encoder, at_start, ())
        piece = _encode_from(past, text)
        self.pieces.append(piece)
        return [id for _, ids in piece.parts for id in ids]


def _encode_from(past: Piece, text: str) -> Piece:
    """Encode a text, reusing the parts of an earlier text that it begins with."""
    encoder, at_start, _ = past
    begin, parts = 0, []
    for part in past.parts:
        end = begin + len(part[0])
        can_end = end == len(text) or (encoder.has_word_ends and is_word_end(text, end))
        if not can_end or not text.startswith(part[0], begin):
            break
        begin = end
        parts.append(part)
    rest = text[begin:]
    end = last_word_end(rest) if encoder.has_word_ends else 0
    for part_text in (rest[:end], rest[end:]):
        if part_text or not (parts or text):
            ids = encoder.encode_text(part_text, at_start and not begin, cut=begin > 0)
            parts.append((part_text, tuple(ids)))
            begin += len(part_text)
    return Piece(encoder, at_start, tuple(parts))


_current: contextvars.ContextVar[Recall | None] = contextvars.ContextVar(
    "recall", default=None
)


def current_recall() -> Recall | None:
    """The :class:`Recall` of this thread, or None."""
    return _current.get()


@contextlib.contextmanager
def use_recall(past: Sequence[Piece]) -> Iterator[Recall]:
    """Within the block, encode texts by a :class:`Recall` of the past."""
    recall = Recall(past)
    token = _current.set(recall)
    try:
        yield recall
    finally:
        _current.reset(token)
