"""The tokenizer of a GGUF file, rebuilt from its vocabulary and the rules it names."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.gguf.bpe import byte_level_bpe, rule_of
from tsi.models.gguf.config import end_ids
from tsi.models.gguf.file import read_header
from tsi.models.gguf.sentencepiece import as_gemma_has_it, sentencepiece_bpe
from tsi.models.gguf.vocabulary import read_vocabulary
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.models.tokens.tokenizer_parts import check_vocabulary, guarded

BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"
NO_ID = 2**32 - 1
"""How llama.cpp writes that there is no such token."""
# Options that are off in the tokenizers of every family here.
OFF = (
    "remove_extra_whitespaces",
    "normalizer.lowercase",
    "normalizer.strip_accents",
    "precompiled_charsmap",
)


def tokenizer_from_gguf(
    path: Path, *, switches: Mapping[str, Any] = MappingProxyType({})
) -> Tokenizer:
    """Rebuild the tokenizer that a GGUF file describes.

    Args:
        path: of the file.
        switches: variables of the chat template.

    Raises:
        ConfigurationError: the chat template does not read one of the switches.
        CheckpointError: the vocabulary is missing or inconsistent, or the tokenizer is
            of a kind, or has a pre-tokenizer or an option, that is not known.
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
            "BPE) are rebuilt. Load the tokenizer from the model's Hugging Face folder "
            "instead."
        )
    off = OFF if model == SENTENCEPIECE else (*OFF, "add_space_prefix")
    for name in off:
        if field(name):
            raise CheckpointError(
                f"{path} has tokenizer.ggml.{name} = {str(field(name))[:50]}, which is "
                f"not done for tokenizers of the kind {model!r}. Load the tokenizer "
                "from the model's Hugging Face folder instead."
            )
    vocabulary = read_vocabulary(path, metadata)
    if model == BYTE_LEVEL:
        rule = rule_of(vocabulary, field("pre"))
        backend = guarded(path, lambda: byte_level_bpe(vocabulary, rule))
        add_bos = rule.add_bos
    else:
        architecture = metadata.get("general.architecture")
        if architecture == "gemma3":
            vocabulary = as_gemma_has_it(vocabulary)
        # Phi-3's control tokens swallow the white space after them, of which a GGUF
        # says nothing; llama.cpp knows it by the model's name, too.
        rstrip = architecture == "phi3"
        space_prefix = flag("add_space_prefix", True)
        backend = guarded(
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
    return guarded(
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
