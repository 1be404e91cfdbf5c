"""Where a text may be cut so that its parts, encoded separately, give its tokens.

Tokenizers of known kinds never merge across the space between two words. The
expressions that split text begin a new word at a space that follows a word, and look no
further ahead. No normaliser composes a space. A merge of byte pairs across the space
would need a token with a space after a letter, and vocabularies with such a token are
not cut. Tokenizers of other kinds are not cut either.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers
from tokenizers import models as token_models

from tsi.models.tokens.split_patterns import CHARACTER, GPT4O, LLAMA3, QWEN2, TEKKEN
from tsi.models.tokens.tokenizer_parts import stage_parts

_WORD = r"[\w!-~]"
PLACE = re.compile(rf"(?<={_WORD}) (?={_WORD})")
_WITHIN_TOKEN = re.compile(rf"(?:{_WORD}|\ufffd) ")
_PATTERNS = {LLAMA3, QWEN2, TEKKEN, GPT4O, CHARACTER}


def is_word_end(text: str, place: int) -> bool:
    """Whether a text may be cut at an index."""
    return PLACE.match(text, place) is not None


def last_word_end(text: str) -> int:
    """The last index at which a text may be cut; 0 if there is none."""
    place = text.rfind(" ")
    while place > 0 and not is_word_end(text, place):
        place = text.rfind(" ", 0, place)
    return max(place, 0)


def has_word_ends(backend: tokenizers.Tokenizer, token_bytes: Iterable[bytes]) -> bool:
    """Whether a tokenizer encodes the two sides of such an index independently.

    Args:
        backend: the tokenizer.
        token_bytes: of its whole vocabulary.
    """
    model = backend.model
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    if not isinstance(model, token_models.BPE | token_models.WordLevel) or any(
        getattr(model, name, None) for name in affixes
    ):
        return False
    normalizers = list(stage_parts(backend.normalizer, "normalizers"))
    splitters = list(stage_parts(backend.pre_tokenizer, "pretokenizers"))
    if not all(map(_leaves_words, normalizers)) or not all(map(_splits, splitters)):
        return False
    is_word_level = isinstance(model, token_models.WordLevel)
    if is_word_level and not any(map(_splits_characters, splitters)):
        return False
    added = backend.get_added_tokens_decoder().values()
    ordinary = [token for token in added if not token.special]
    if ordinary and (
        puts_space_anywhere(backend)
        or any(token.lstrip or token.rstrip or token.single_word for token in ordinary)
        or any(" " in token.content.strip(" ▁") for token in ordinary)
    ):
        return False
    return not any(map(_reaches_over, token_bytes))


def puts_space_anywhere(backend: tokenizers.Tokenizer) -> bool:
    """Whether a space is put before a text even if it begins with one."""
    normalizers = stage_parts(backend.normalizer, "normalizers")
    return any(part.get("type") == "Prepend" for part in normalizers)


def _leaves_words(part: Mapping[str, Any]) -> bool:
    """Whether a normaliser keeps spaces between words."""
    if part.get("type") == "Replace":
        return part["pattern"].get("String") == " " and part["content"] == "▁"
    if part.get("type") == "Prepend":
        return part["prepend"] == "▁"
    return part.get("type") == "NFC"


def _splits(part: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer ends a part at each word's end, or splits nothing."""
    if part.get("type") == "Split":
        pattern, behaviour = part["pattern"], part["behavior"]
        if pattern.get("String") in (" ", "▁"):
            return behaviour != "Removed"
        return pattern.get("Regex") in _PATTERNS and behaviour == "Isolated"
    return part.get("type") in ("ByteLevel", "Metaspace", "Digits")


def _splits_characters(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "Split" and part["pattern"].get("Regex") == CHARACTER


def _reaches_over(token: bytes) -> bool:
    place = token.find(b" ", 1)
    if place < 0:
        return False
    return bool(_WITHIN_TOKEN.search(token.decode("utf-8", errors="replace")))
