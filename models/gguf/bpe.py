"""Byte-level BPE from a GGUF file (the tokenizer model ``gpt2``).

A GGUF has a name for the rule that splits text before byte-pair merging
(``tokenizer.ggml.pre``), but not the rule. The rules here are those of llama.cpp for
these names, in the form of the models' own tokenizer.json. An unknown name is refused:
with a wrong rule every text can be encoded, but not as in the model's training.

Source: llama.cpp's src/llama-vocab.cpp.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import models as token_models

from tsi.errors import CheckpointError
from tsi.models.gguf.vocabulary import Vocabulary, add_named_tokens
from tsi.models.tokens.split_patterns import DEFAULT, GPT4O, LLAMA3, QWEN2, TEKKEN


class Rule(NamedTuple):
    """How text is split before merging, with further properties of the tokenizer.

    Attributes:
        split: makes the pre-tokenizer.
        normalizer: makes the normaliser, if there is one.
        ignore_merges: whether a word of the vocabulary is one token even if the merges
            do not lead to it.
        add_bos: whether bare text begins with the beginning-of-sequence token, if the
            file does not state it.
    """

    split: Callable[[], Any]
    normalizer: Callable[[], Any] | None = None
    ignore_merges: bool = False
    add_bos: bool = False


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2()])


def _patterns(*patterns: str) -> Callable[[], Any]:
    def split() -> Any:
        words = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*words, to_bytes])

    return split


_NAMES: list[tuple[str, Rule]] = [
    ("gpt-2 phi-2 olmo granite-docling", Rule(_gpt2)),
    ("smollm starcoder refact codeshell minerva-7b", Rule(_single_digits)),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 lfm2 midm-2.0 pixtral",
        Rule(_patterns(LLAMA3), ignore_merges=True, add_bos=True),
    ),
    ("dbrx smaug-bpe", Rule(_patterns(LLAMA3))),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez",
        Rule(_patterns(QWEN2), normalizers.NFC),
    ),
    ("stablelm2", Rule(_patterns(QWEN2))),
    ("tekken", Rule(_patterns(TEKKEN), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 kanana2", Rule(_patterns(GPT4O))),
    ("default", Rule(_patterns(*DEFAULT))),
]
RULES = {name: rule for names, rule in _NAMES for name in names.split()}


def rule_of(vocabulary: Vocabulary, name: Any) -> Rule:
    """The rule of a pre-tokenizer's name.

    Raises:
        CheckpointError: the name is unknown or absent.
    """
    rule = RULES.get(name) if isinstance(name, str) else None
    if rule is None:
        raise CheckpointError(
            f"{vocabulary.path} names the pre-tokenizer {name!r}. Known: "
            f"{', '.join(sorted(RULES))}."
        )
    return rule


def byte_level_bpe(vocabulary: Vocabulary, rule: Rule) -> tokenizers.Tokenizer:
    """Build the tokenizer.

    Raises:
        CheckpointError: there are no merges, or one has an unknown token.
    """
    ids = vocabulary.ids
    pairs = [merge.partition(" ")[::2] for merge in vocabulary.merges]
    unknown = [
        " ".join(pair) for pair in pairs if not ids.keys() >= {*pair, "".join(pair)}
    ]
    if unknown or not pairs:
        raise CheckpointError(
            f"{vocabulary.path} has an inconsistent vocabulary: {len(ids)} tokens, "
            f"{len(pairs)} merges, {len(unknown)} of them of unknown tokens "
            f"{unknown[:5]}. Convert or download the model again."
        )
    backend = tokenizers.Tokenizer(
        token_models.BPE(ids, pairs, ignore_merges=rule.ignore_merges)
    )
    backend.pre_tokenizer = rule.split()
    if rule.normalizer is not None:
        backend.normalizer = rule.normalizer()
    backend.decoder = decoders.ByteLevel()
    add_named_tokens(backend, vocabulary)
    return backend
