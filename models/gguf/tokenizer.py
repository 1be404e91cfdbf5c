"""The tokenizer of a GGUF file, built from its vocabulary and its named rules."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.gguf.bpe import byte_level_bpe, rule_of
from tsi.models.gguf.config import end_ids
from tsi.models.gguf.file import read_header
from tsi.models.gguf.sentencepiece import gemma_vocabulary, sentencepiece_bpe
from tsi.models.gguf.vocabulary import read_vocabulary
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.models.tokens.tokenizer_parts import call_backend, check_vocabulary

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
NO_ID = 2**32 - 1
"""The value that llama.cpp writes for a token that does not exist."""
# Options that are off in the tokenizers of all families here.
UNSUPPORTED_OPTIONS = (
    "remove_extra_whitespaces",
    "normalizer.lowercase",
    "normalizer.strip_accents",
    "precompiled_charsmap",
)


def tokenizer_from_gguf(
    path: Path, *, switches: Mapping[str, Any] = MappingProxyType({})
) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Args:
        path: of the file.
        switches: variables of the chat template.

    Raises:
        ConfigurationError: the chat template does not read one of the switches.
        CheckpointError: the vocabulary is missing or inconsistent, or the kind of the
            tokenizer, its pre-tokenizer or an option is not supported.
    """
    metadata = read_header(path).metadata

    def field(name: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}", default)

    def flag(name: str, default: bool) -> bool:
        value = field(name, default)
        if type(value) is not bool:
            raise CheckpointError(
                f"{path} has tokenizer.ggml.{name} = {str(value)[:50]}, which is "
                "neither true nor false. Convert or download the model again."
            )
        return value

    model = field("model")
    if model not in (BYTE_LEVEL, SENTENCEPIECE):
        raise CheckpointError(
            f"{path} has a tokenizer of the kind {model!r}; from GGUF only "
            f"{BYTE_LEVEL!r} (byte-level BPE) and {SENTENCEPIECE!r} (SentencePiece "
            "BPE) are supported. Load the tokenizer from the model's Hugging Face "
            "folder instead."
        )
    options = [*UNSUPPORTED_OPTIONS]
    if model != SENTENCEPIECE:
        options.append("add_space_prefix")
    for name in options:
        if field(name):
            raise CheckpointError(
                f"{path} has tokenizer.ggml.{name} = {str(field(name))[:50]}, which is "
                f"not supported for tokenizers of the kind {model!r}. Load the "
                "tokenizer from the model's Hugging Face folder instead."
            )
    vocabulary = read_vocabulary(path, metadata)
    if model == BYTE_LEVEL:
        rule = rule_of(vocabulary, field("pre"))
        backend = call_backend(path, lambda: byte_level_bpe(vocabulary, rule))
        add_bos = rule.add_bos
    else:
        architecture = metadata.get("general.architecture")
        if architecture == "gemma3":
            vocabulary = gemma_vocabulary(vocabulary)
        # Phi-3's control tokens strip the white space after them, which a GGUF does not
        # state; llama.cpp too knows it by the model's name.
        rstrip = architecture == "phi3"
        space_prefix = flag("add_space_prefix", True)
        backend = call_backend(
            path,
            lambda: sentencepiece_bpe(
                vocabulary, space_prefix=space_prefix, rstrip=rstrip
            ),
        )
        add_bos = True

    def id_of(role: str) -> int | None:
        id = field(f"{role}_token_id")
        if id is None or id == NO_ID:
            return None
        if type(id) is not int or not 0 <= id < len(vocabulary.tokens):
            raise CheckpointError(
                f"{path} has tokenizer.ggml.{role}_token_id = {str(id)[:50]}, and its "
                f"vocabulary has {len(vocabulary.tokens)} tokens. Convert or download "
                "the model again."
            )
        return id

    for role in ("eos", "eot", "unknown"):
        id_of(role)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{path} has a tokenizer.chat_template that is not text. Convert or "
            "download the model again."
        )
    check_vocabulary(path, backend)
    return call_backend(
        path,
        lambda: Tokenizer(
            backend,
            bos_id=id_of("bos"),
            eos_ids=end_ids(metadata),
            pad_id=id_of("padding"),
            add_bos=flag("add_bos_token", add_bos),
            chat_template=template,
            name=str(path),
            switches=switches,
        ),
    )
