"""The exact bytes of each token of a vocabulary.

A token is stored as a printable string; its bytes depend on the kind of tokenizer.
Byte-level BPE (GPT-2, Llama 3, SmolLM) writes every byte as one printable character.
SentencePiece-like models write spaces as ▁ and single bytes as <0xNN>. In plain ones
the string is the text.

Reference: Radford et al. 2019 (GPT-2) for the byte-level alphabet.
"""

import functools
import json
import re
from collections.abc import Callable

import tokenizers

from tsi.errors import CheckpointError
from tsi.models.tokens.thinking import TAG_TOKENS


def bytes_of_tokens(backend: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of every id; ``b""`` for control tokens and for ids without a token.

    The tags around a model's thinking count as text, even as control tokens: a reader
    of a solution must see where its thinking ends.

    Raises:
        CheckpointError: as :func:`kind_of`.
    """
    to_bytes = _BYTES_OF[kind_of(backend)]
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, id in vocabulary.items():
        if id not in added:
            table[id] = to_bytes(token)
        elif not added[id].special or token in TAG_TOKENS:
            # Gemma's runs of spaces are added tokens, with spaces written as ▁.
            content = added[id].content
            if kind_of(backend) == "sentencepiece":
                content = content.replace("▁", " ")
            table[id] = content.encode()
    return table


def kind_of(backend: tokenizers.Tokenizer) -> str:
    """How token strings encode bytes: byte_level, sentencepiece or plain.

    Raises:
        CheckpointError: the decoder is of another kind.
    """
    if backend.decoder is None:
        return "plain"
    state = json.loads(backend.decoder.__getstate__())
    parts = {part["type"] for part in state.get("decoders", [state])}
    if "ByteLevel" in parts:
        return "byte_level"
    if parts & {"ByteFallback", "Metaspace"}:
        return "sentencepiece"
    if parts <= {"Fuse"}:
        return "plain"
    raise CheckpointError(
        f"A tokenizer whose decoder is {', '.join(sorted(parts))} is not supported; "
        "byte-level, SentencePiece-like and plain ones are."
    )


def puts_space_first(backend: tokenizers.Tokenizer) -> bool:
    """Whether a space is put before the first word of a text.

    The decoder removes it again, except in byte-level tokenizers.
    """
    for stage in (backend.normalizer, backend.pre_tokenizer):
        state = json.loads(stage.__getstate__()) if stage is not None else {}
        parts = state.get("normalizers") or state.get("pretokenizers") or [state]
        for part in parts:
            if part.get("type") == "Prepend":
                return True
            if part.get("type") == "Metaspace":
                return part.get("prepend_scheme") != "never"
            if part.get("type") == "ByteLevel" and part.get("add_prefix_space"):
                return True
    return False


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE: printable bytes map to themselves, others to
    characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {chr(b): b for b in printable}
    return table | {chr(256 + i): b for i, b in enumerate(others)}


def _byte_level(token: str) -> bytes:
    table = _byte_of_character()
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode("utf-8")


def _sentencepiece(token: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


_BYTES_OF: dict[str, Callable[[str], bytes]] = {
    "byte_level": _byte_level,
    "sentencepiece": _sentencepiece,
    "plain": lambda token: token.encode("utf-8"),
}
