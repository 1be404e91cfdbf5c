"""Ids of texts without control tokens, and the exact bytes of each id.

The bytes of an encoding, joined, are the text's own UTF-8, even where a token ends in
the middle of a character; only spaces that the tokenizer adds or strips may differ. A
text that the vocabulary cannot spell is refused, because byte-pair models drop such
characters without an error.
"""

import functools
import itertools
import json
from collections.abc import Sequence

import tokenizers

from tsi.errors import ConfigurationError
from tsi.models.tokens.token_bytes import bytes_of_tokens, kind_of, puts_space_first
from tsi.models.tokens.tokenizer_parts import is_bounded
from tsi.models.tokens.word_ends import has_word_ends, puts_space_anywhere
from tsi.models.workers import untrusted
from tsi.models.workers.process_limits import LimitExceeded

_counter = itertools.count()


class TextEncoder:
    """Text without control tokens to ids, and ids to bytes.

    Args:
        backend: a tokenizer of the ``tokenizers`` package.
        name: of the model, for messages.

    Raises:
        CheckpointError: the bytes of the tokens cannot be known (neither byte-level
            nor SentencePiece-like nor plain text).
    """

    def __init__(self, backend: tokenizers.Tokenizer, name: str) -> None:
        self.backend, self.name = backend, name
        self._kind = kind_of(backend)
        added = backend.get_added_tokens_decoder().values()
        # Some added tokens strip white space from any text, and some tokenizers put a
        # space before a text.
        self._keeps_spaces = not (
            any((t.lstrip or t.rstrip) and not t.special for t in added)
            or (self._kind == "byte_level" and puts_space_first(backend))
        )
        self._space_first = self._kind == "sentencepiece" and puts_space_first(backend)
        self._repeats_space = puts_space_anywhere(backend)
        self._bounded = is_bounded(backend)
        self._states: dict[bool, tuple[str, str]] = {}

    @functools.cached_property
    def byte_table(self) -> list[bytes]:
        """The bytes of each id; ``b""`` for control tokens and ids without a token."""
        return bytes_of_tokens(self.backend)

    @functools.cached_property
    def has_word_ends(self) -> bool:
        """Whether a text may be cut at the end of a word
        (:mod:`tsi.models.tokens.word_ends`)."""
        return has_word_ends(self.backend, self.byte_table)

    def prepare(self) -> None:
        """Build the tables now, instead of at their first use."""
        _ = self.byte_table, self._inner_backend

    def encode(self, text: str, at_start: bool, *, cut: bool = False) -> list[int]:
        """Ids of a text, or of the part of it that follows the end of a word.

        Args:
            text: without control tokens.
            at_start: whether no text precedes it.
            cut: whether the text begins with the space that follows a word, and the
                word was encoded apart.

        Raises:
            ConfigurationError: the vocabulary cannot spell the text, or the tokenizer
                fails or is stopped at a limit.
        """
        if cut and self._repeats_space:
            text = text[1:]
        ids, normalized = self._run(text, at_start and not cut)
        if ids is None or not self._spells(ids, normalized):
            raise ConfigurationError(
                f"The tokenizer's vocabulary cannot spell all of {text[:200]!r}; use "
                "only characters of its alphabet."
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The bytes of some ids, joined and read as UTF-8.

        Broken UTF-8 becomes U+FFFD, and control tokens have no text.
        """
        text = b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")
        return text[1:] if self._space_first and text.startswith(" ") else text

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes that a token adds to the text."""
        return self.byte_table[id] if 0 <= id < len(self.byte_table) else b""

    def normalise(self, text: str) -> str:
        """The text as its tokens spell it, with spaces written as spaces."""
        if not self._bounded:
            return self._run(text, True)[1]
        normalizer = self.backend.normalizer
        return self._with_spaces(normalizer.normalize_str(text) if normalizer else text)

    def _with_spaces(self, text: str) -> str:
        return text.replace("▁", " ") if self._kind == "sentencepiece" else text

    def _spells(self, ids: list[int], text: str) -> bool:
        """Whether ids spell a normalised text, but for spaces the tokenizer changes."""
        if self._kind == "sentencepiece":
            # An id without bytes is a control token, or the token of unknown text.
            return all(map(self.token_bytes, ids))
        spelling = b"".join(map(self.token_bytes, ids))
        if self._keeps_spaces:
            return spelling == text.encode("utf-8")
        decoded = spelling.decode("utf-8", errors="replace")
        return "".join(decoded.split()) == "".join(text.split())

    def _run(self, text: str, at_start: bool) -> tuple[list[int] | None, str]:
        """The backend's ids of a text, None if it fails, and the text normalised.

        A backend that might take long or much memory runs in the process with limits.
        """
        if not self._bounded:
            return self._run_within_limits(text, at_start)
        backend = self.backend if at_start else self._inner_backend
        # Set at each call: the backend is mutable, and others may hold it.
        backend.encode_special_tokens = True
        try:
            ids = backend.encode(text, add_special_tokens=False).ids
            return ids, self.normalise(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # panics of the Rust package derive only from it
            return None, text

    def _run_within_limits(
        self, text: str, at_start: bool
    ) -> tuple[list[int] | None, str]:
        try:
            ids, text = untrusted.encode(*self._state(at_start), text)
        except untrusted.PanickedError as error:
            raise ConfigurationError(
                f"The tokenizer of {self.name} fails on a text of {len(text)} "
                f"characters: {error}. Choose another model."
            ) from None
        except untrusted.RefusedError:
            return None, text
        except LimitExceeded as error:
            raise ConfigurationError(
                f"The tokenizer of {self.name} was stopped: for a text of "
                f"{len(text)} characters it {error}. Choose another model."
            ) from None
        return ids, self._with_spaces(text)

    def _state(self, at_start: bool) -> tuple[str, str]:
        """The backend as JSON, and a name that no other backend has."""
        if at_start not in self._states:
            backend = self.backend if at_start else self._inner_backend
            self._states[at_start] = backend.to_str(), f"{next(_counter)}"
        return self._states[at_start]

    @functools.cached_property
    def _inner_backend(self) -> tokenizers.Tokenizer:
        """The backend for a text that follows another: some put a space at the start
        only."""
        state = json.loads(self.backend.to_str())
        stage = state.get("pre_tokenizer") or {}
        parts = [
            part
            for part in stage.get("pretokenizers", [stage])
            if part.get("prepend_scheme") == "first"
        ]
        for part in parts:
            part["prepend_scheme"] = "never"
        if not parts:
            return self.backend
        return tokenizers.Tokenizer.from_str(json.dumps(state))
