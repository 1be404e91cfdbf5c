"""The tokenizer of a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from tsi.errors import CheckpointError
from tsi.models.tensors.safetensors import read_json
from tsi.models.tokens import llama_tokenizer
from tsi.models.tokens.control_tokens import add_tokens, roles_of, tokenizer_fields
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.models.tokens.tokenizer_parts import (
    MAX_IDS,
    call_backend,
    check_added,
    check_vocabulary,
    control_ids_around,
    disable_training_options,
    read_text,
)


def tokenizer_from_folder(
    path: Path, *, switches: Mapping[str, Any] = MappingProxyType({})
) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, whose files are trusted.

    Args:
        path: of the folder.
        switches: variables of the chat template.

    Raises:
        CheckpointError: it is absent, malformed or of an unsupported kind.
        ConfigurationError: the chat template does not read one of the switches.
    """
    source = path / "tokenizer.json"
    if not source.is_file():
        raise CheckpointError(
            f"There is no tokenizer.json in {path}; tokenizers in other formats are "
            "not supported. Load it with transformers, and save_pretrained converts it."
        )
    fields = tokenizer_fields(path)
    model, generation = (
        read_json(path / name) if (path / name).is_file() else {}
        for name in ("config.json", "generation_config.json")
    )
    num_ids = _vocabulary_size(model)

    def build() -> tokenizers.Tokenizer:
        text = file_text = read_text(source)
        if llama_tokenizer.is_llama_tokenizer(model, fields, text):
            text = llama_tokenizer.rebuild(fields, text)
            for role, token in llama_tokenizer.DEFAULTS.items():
                fields.setdefault(role, token)
        backend = disable_training_options(tokenizers.Tokenizer.from_str(text))
        add_tokens(path, fields, backend)
        check_added(source, file_text, backend)
        check_vocabulary(source, backend, num_ids)
        return backend

    backend = call_backend(source, build)
    roles = roles_of(fields)
    ids = {role: backend.token_to_id(token) for role, token in roles.items()}
    bos, eos = ids.get("bos_token"), ids.get("eos_token")
    template = _template(path, fields.get("chat_template"))
    if (path / "chat_template.jinja").is_file():
        template = (path / "chat_template.jinja").read_text(encoding="utf-8")
    # transformers ignores add_bos_token if there is a tokenizer.json, and so do we.
    first = call_backend(source, lambda: control_ids_around(source, backend))[:1]
    more_ends = end_ids(path / "generation_config.json", generation, num_ids)
    return call_backend(
        source,
        lambda: Tokenizer(
            backend,
            bos_id=bos,
            eos_ids=[id for id in (eos, *more_ends) if id is not None],
            pad_id=ids.get("pad_token"),
            add_bos=first == [bos],
            chat_template=template,
            roles=roles,
            name=str(path),
            switches=switches,
            num_rows=num_ids,
        ),
    )


def end_ids(path: Path, fields: Mapping[str, Any], num_ids: int | None) -> list[int]:
    """The ids that a generation_config.json ends solutions with.

    Raises:
        CheckpointError: one is not an id of the vocabulary.
    """
    stored_ids = fields.get("eos_token_id")
    ids = (
        stored_ids
        if isinstance(stored_ids, list)
        else []
        if stored_ids is None
        else [stored_ids]
    )
    for id in ids:
        if type(id) is not int or not 0 <= id < (num_ids or MAX_IDS):
            raise CheckpointError(
                f"{path} has eos_token_id={stored_ids!r}, which is not one id of the "
                "vocabulary or a list of them. Correct it, or remove the field."
            )
    return ids


def _vocabulary_size(model: Mapping[str, Any]) -> int | None:
    """Rows of the embedding according to config.json, which the loader checks."""
    text = model.get("text_config")
    sizes = [model, text if isinstance(text, dict) else {}]
    counts = [s["vocab_size"] for s in sizes if type(s.get("vocab_size")) is int]
    return counts[0] if counts else None


def _template(path: Path, template: Any) -> str | None:
    """The chat template; among several, the one named default."""
    if isinstance(template, list):
        templates = {
            t.get("name"): t.get("template") for t in template if type(t) is dict
        }
        template = templates.get("default", templates)
    if template is None or isinstance(template, str):
        return template
    raise CheckpointError(
        f"{path / 'tokenizer_config.json'} has a chat_template that is neither a text "
        "nor a list with one named default."
    )
