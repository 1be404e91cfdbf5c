"""Checks of a tokenizer.json: its contents, and the cost of using it.

The vocabulary is checked before any table of it is made. Two dangers remain: the time
of a regular expression may grow exponentially with the text, and a chain of
replacements may lengthen the text as fast. :func:`is_bounded` knows the parts that do
neither. A tokenizer with any other part encodes in the process with limits
(:mod:`tsi.models.workers.untrusted`).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from tsi.errors import CheckpointError, TsiError
from tsi.models.files import describe_error
from tsi.models.tokens.split_patterns import KNOWN
from tsi.models.workers.process_limits import TimeLimit

MAX_IDS = 2**22
"""Ids of a vocabulary, including ids without a token; released ones have 2^18."""
MAX_LENGTH = 1024
"""Characters of a token."""
MAX_BYTES = 2**28
"""Size of a tokenizer.json; released ones have up to 35 MB."""
MAX_AROUND = 8
"""Control tokens that a tokenizer may put around each text."""
MAX_PARTS, MAX_GROWTH, MAX_PREFIX = 16, 8.0, 16
MAX_WORD = 1000

_NORMALIZERS = {
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Strip",
    "StripAccents",
    "Nmt",
    "BertNormalizer",
    "ByteLevel",
}
_PRE_TOKENIZERS = {
    "ByteLevel",
    "Metaspace",
    "Whitespace",
    "WhitespaceSplit",
    "Punctuation",
    "Digits",
    "BertPreTokenizer",
    "CharDelimiterSplit",
    "UnicodeScripts",
    "FixedLength",
}


def read_text(path: Path) -> str:
    """The text of a tokenizer.json.

    Raises:
        CheckpointError: it is larger than MAX_BYTES.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes; up to {MAX_BYTES} are read. Download it again."
        )
    return path.read_text(encoding="utf-8")


def check_vocabulary(
    path: Path, backend: tokenizers.Tokenizer, num_ids: int | None = None
) -> None:
    """Refuse a vocabulary with tokens or ids that cannot be used.

    Args:
        path: of its file, for messages.
        backend: the tokenizer.
        num_ids: rows of the model's embedding, if known.

    Raises:
        CheckpointError: a token is too long, or its id is too large or that of another
            token.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    token_of: dict[int, str] = {}
    for token, id in vocabulary.items():
        short = token if len(token) <= 50 else token[:50] + "…"
        if id in token_of:
            raise CheckpointError(
                f"{path} gives the id {id} to {token_of[id]!r} and to {short!r}. "
                "Download it again."
            )
        token_of[id] = short
        if len(token) > MAX_LENGTH:
            raise CheckpointError(
                f"{path} has a token of {len(token)} characters, {short!r}; at most "
                f"{MAX_LENGTH} are read. Download it again."
            )
        if id >= MAX_IDS:
            raise CheckpointError(
                f"{path} gives the token {short!r} the id {id}; ids below {MAX_IDS} "
                "are read. Download it again."
            )
        # Control tokens may have ids beyond: Gemma 3 1B has no rows for pictures.
        if num_ids is not None and id >= num_ids and id not in added:
            raise CheckpointError(
                f"{path} gives the token {short!r} the id {id}, and the model's "
                f"config.json has a vocabulary of {num_ids}; one of the files belongs "
                "to another model. Download it again."
            )


def check_added(path: Path, text: str, backend: tokenizers.Tokenizer) -> None:
    """Refuse added tokens whose ids in the package differ from those in the file.

    Args:
        path: of the file, for messages.
        text: of the tokenizer.json.
        backend: made of it.

    Raises:
        CheckpointError: one has another id, or none.
    """
    entries = json.loads(text).get("added_tokens") or []
    for entry in entries:
        content, id = entry["content"], entry["id"]
        actual_id = backend.token_to_id(content)
        if actual_id != id:
            remark = "it has no id" if actual_id is None else f"its id is {actual_id}"
            raise CheckpointError(
                f"{path} gives the added token {content[:50]!r} the id {id}, and in "
                f"the vocabulary {remark}. Download it again."
            )


def control_ids_around(path: Path, backend: tokenizers.Tokenizer) -> list[int]:
    """The control tokens that a tokenizer puts around every text.

    Raises:
        CheckpointError: there are too many.
    """
    around = backend.encode("", add_special_tokens=True).ids
    if len(around) > MAX_AROUND:
        raise CheckpointError(
            f"{path} puts {len(around)} control tokens around each text (its "
            f"post_processor); up to {MAX_AROUND} are read. Choose another model."
        )
    return around


def disable_training_options(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Turn off a tokenizer's truncation, padding and dropout of merges.

    A tokenizer.json may have them from a training run.
    """
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return backend


def is_bounded(backend: tokenizers.Tokenizer) -> bool:
    """Whether encoding is known to take time and memory proportional to the text."""
    normalizers = list(stage_parts(backend.normalizer, "normalizers"))
    splitters = list(stage_parts(backend.pre_tokenizer, "pretokenizers"))
    growth = 1.0
    for part in normalizers:
        factor = _growth(part)
        if factor is None:
            return False
        growth *= factor
    return (
        len(normalizers) <= MAX_PARTS
        and len(splitters) <= MAX_PARTS
        and growth <= MAX_GROWTH
        and all(map(_splits_fast, splitters))
        and getattr(backend.model, "max_input_chars_per_word", 0) <= MAX_WORD
    )


def stage_parts(stage: Any, name: str) -> Iterable[Mapping[str, Any]]:
    """The states of a stage's parts; a stage that is not a sequence is one part."""
    states = [] if stage is None else [json.loads(stage.__getstate__())]
    while states:
        state = states.pop()
        if state.get("type") == "Sequence":
            states += state[name]
        else:
            yield state


def _growth(part: Mapping[str, Any]) -> float | None:
    """The largest factor by which a normaliser lengthens text; None if unknown."""
    kind = part.get("type")
    if kind == "Prepend":
        return 1.0 if len(part["prepend"]) <= MAX_PREFIX else None
    if kind == "Replace":
        pattern = part["pattern"].get("String")
        return max(1.0, len(part["content"]) / len(pattern)) if pattern else None
    return 1.0 if kind in _NORMALIZERS else None


def _splits_fast(part: Mapping[str, Any]) -> bool:
    if part.get("type") == "Split":
        pattern = part["pattern"]
        return bool(pattern.get("String")) or pattern.get("Regex") in KNOWN
    return part.get("type") in _PRE_TOKENIZERS


def call_backend(path: Path, build: Callable[[], Any]) -> Any:
    """Call the Rust package, and turn its errors into a CheckpointError.

    Its panics derive only from BaseException, so BaseException is caught.
    """
    try:
        return build()
    except (KeyboardInterrupt, SystemExit, TimeLimit, MemoryError, TsiError):
        raise
    except OSError as error:
        raise CheckpointError(describe_error(error, path)) from None
    except BaseException as error:
        raise CheckpointError(
            f"{path} does not hold a usable tokenizer: {error}."
        ) from None
