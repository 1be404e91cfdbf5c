"""Loads the tokenizer of a model from its files."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tsi.models.gguf.tokenizer import tokenizer_from_gguf
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.models.tokens.tokenizer_files import tokenizer_from_folder
from tsi.models.workers import untrusted


def load_tokenizer(
    path: str | Path, *, switches: Mapping[str, Any] = MappingProxyType({})
) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder or a ``.gguf`` file.

    The files are not trusted: they are first read in a process with limits of time and
    memory (:mod:`tsi.models.workers.untrusted`).

    Args:
        path: the folder or file.
        switches: variables of the chat template, of JSON types, such as
            ``enable_thinking``.

    Raises:
        CheckpointError: it is absent, malformed or of an unsupported kind, or takes
            too much time or memory.
        ConfigurationError: the chat template does not read one of the switches.
    """
    untrusted.build(Path(path))
    return read_tokenizer(path, switches=switches)


def read_tokenizer(
    path: str | Path, *, switches: Mapping[str, Any] = MappingProxyType({})
) -> Tokenizer:
    """As :func:`load_tokenizer` without limits, for trusted files."""
    path = Path(path)
    read = tokenizer_from_gguf if path.is_file() else tokenizer_from_folder
    return read(path, switches=switches)
