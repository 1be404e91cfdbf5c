"""The tokenizer of a GGUF file, rebuilt from its vocabulary, merges and rule names.

A GGUF names how text is split before byte-pair merging (``tokenizer.ggml.pre``) and
leaves the rule to the reader. The rules here are those that llama.cpp's
``llama-vocab.cpp`` gives the names; an unknown name is refused, because a wrong split
still encodes every text, only not as the model was trained.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import models as token_models

from tsi.errors import CheckpointError
from tsi.models.gguf import read_header
from tsi.models.tokenizer import Tokenizer, guarded

# Values of tokenizer.ggml.token_type.
CONTROL, USER_DEFINED = 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class _Rule(NamedTuple):
    split: Callable[[], Any]
    normalizer: Callable[[], Any] | None = None
    ignore_merges: bool = False
    add_bos: bool = False


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2()])


def _pattern(pattern: str) -> Callable[[], Any]:
    def split() -> Any:
        words = pre_tokenizers.Split(Regex(pattern), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([words, plain])

    return split


_RULES = {
    **dict.fromkeys(("gpt-2", "olmo"), _Rule(_gpt2)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "codeshell"), _Rule(_single_digits)
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3"),
        _Rule(_pattern(_LLAMA3), ignore_merges=True, add_bos=True),
    ),
    "qwen2": _Rule(_pattern(_QWEN2), normalizer=normalizers.NFC),
}


def tokenizer_from_gguf(path: Path) -> Tokenizer:
    """Rebuild the byte-level BPE tokenizer that a GGUF file describes.

    Raises:
        CheckpointError: the vocabulary is missing or inconsistent, or the tokenizer is
            of a kind or has a pre-tokenizer that is not known.
    """
    metadata = read_header(path).metadata

    def field(name: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}", default)

    if field("model") != "gpt2":
        raise CheckpointError(
            f"{path} has a tokenizer of the kind {field('model')!r}; from GGUF only "
            "'gpt2' (byte-level BPE) is rebuilt. Load the tokenizer from the model's "
            "Hugging Face folder instead."
        )
    rule = _RULES.get(str(field("pre")))
    if rule is None:
        raise CheckpointError(
            f"{path} names the pre-tokenizer {field('pre')!r}. Known: "
            f"{', '.join(sorted(_RULES))}."
        )
    tokens, merges = field("tokens"), field("merges")
    kinds = field("token_type", [1] * len(tokens) if _is_texts(tokens) else None)
    if not (_is_texts(tokens) and _is_texts(merges) and isinstance(kinds, list)):
        raise CheckpointError(f"{path} has no vocabulary or no merges.")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    wrong = [
        " ".join(pair)
        for pair in pairs
        if len(pair) != 2 or not vocabulary.keys() >= {*pair, "".join(pair)}
    ]
    if wrong or len(vocabulary) < len(tokens) or len(kinds) != len(tokens):
        raise CheckpointError(
            f"{path} has an inconsistent vocabulary: {len(tokens)} tokens, "
            f"{len(vocabulary)} different, {len(kinds)} kinds, {len(wrong)} merges of "
            f"unknown tokens {wrong[:5]}. Convert or download the model again."
        )

    def build() -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer(
            token_models.BPE(vocabulary, pairs, ignore_merges=rule.ignore_merges)
        )
        backend.pre_tokenizer = rule.split()
        if rule.normalizer is not None:
            backend.normalizer = rule.normalizer()
        backend.decoder = decoders.ByteLevel()
        for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
            names = [t for t, k in zip(tokens, kinds, strict=True) if k == kind and t]
            added = [AddedToken(n, special=special, normalized=False) for n in names]
            if special:
                backend.add_special_tokens(added)
            else:
                backend.add_tokens(added)
        return backend

    def id_of(role: str) -> int | None:
        id = field(f"{role}_token_id")
        return id if type(id) is int and 0 <= id < len(tokens) else None

    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        guarded(path, build),
        bos_id=id_of("bos"),
        eos_ids=[id for id in map(id_of, ("eos", "eot")) if id is not None],
        pad_id=id_of("padding"),
        add_bos=bool(field("add_bos_token", rule.add_bos)),
        chat_template=template if isinstance(template, str) else None,
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
