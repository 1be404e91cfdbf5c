"""The tokens that a folder adds to its vocabulary, and the tokens of each role.

Current folders have all of them in tokenizer.json and tokenizer_config.json. Older ones
have the roles in special_tokens_map.json and the added tokens in added_tokens.json.
These two files are read only if tokenizer_config.json has no table of added tokens
(``added_tokens_decoder``), as in transformers'
``PreTrainedTokenizerBase._from_pretrained``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from tsi.errors import CheckpointError
from tsi.models.tensors.safetensors import read_json

CONFIG, ROLES, ADDED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TABLE = "added_tokens_decoder"
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """The fields of a folder's tokenizer_config.json, with the roles of older folders.

    Raises:
        CheckpointError: one of the files is not a JSON object.
    """
    fields, roles = (
        _read_json_if_present(path / CONFIG),
        _read_json_if_present(path / ROLES),
    )
    return fields if _TABLE in fields else fields | roles


def roles_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """The token of each role: ``eos_token``, ``unk_token``, a model's own roles."""
    tokens = {
        role: value.get("content") if isinstance(value, dict) else value
        for role, value in fields.items()
        if role.endswith("_token")
    }
    return {role: token for role, token in tokens.items() if isinstance(token, str)}


def add_tokens(
    path: Path, fields: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> None:
    """Add to a tokenizer the tokens that files other than tokenizer.json name.

    A token is control if any of the files says so, because a text must not be able to
    write a control token. (In transformers the last file decides.)

    Args:
        path: of the folder.
        fields: of :func:`tokenizer_fields`.
        backend: of tokenizer.json; changed in place.

    Raises:
        CheckpointError: an entry is malformed, or its id is not the next free one.
    """
    roles = roles_of(fields)
    additional = [token for key in _LISTS for token in _entries(fields.get(key))]
    stored_tokens = backend.get_added_tokens_decoder()
    control = {token.content for token in stored_tokens.values() if token.special}
    control |= {*roles.values(), *(content for content, _ in additional)}
    if _TABLE in fields:
        source, tokens = path / CONFIG, _table(path / CONFIG, fields[_TABLE])
    else:
        source, tokens = path / ADDED, {}
        for content, id in _read_json_if_present(source).items():
            flags = {
                "special": content in control,
                "normalized": content not in control,
            }
            tokens[_id(source, content, id)] = (content, flags)
        # tokenizer.json takes precedence over the older file.
        for id in stored_tokens:
            tokens.pop(id, None)
    for id, (content, flags) in sorted(tokens.items()):
        special = flags.get("special", False) or content in control
        backend.add_tokens([AddedToken(content, **{**flags, "special": special})])
        if backend.token_to_id(content) != id:
            raise CheckpointError(
                f"{source} gives {content!r} the id {id}, and its id in the "
                f"vocabulary is {backend.token_to_id(content)}; one of the files "
                "belongs to another model. Download the tokenizer again."
            )
    contents = {token.content for token in backend.get_added_tokens_decoder().values()}
    for content, flags in [*_entries([fields[role] for role in roles]), *additional]:
        if content not in contents:
            backend.add_tokens([AddedToken(content, **{**flags, "special": True})])
            contents.add(content)


def _read_json_if_present(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _table(path: Path, table: Any) -> dict[int, tuple[str, dict[str, bool]]]:
    """The entries of ``added_tokens_decoder`` by id."""
    entries = _entries(list(table.values())) if isinstance(table, dict) else []
    if not isinstance(table, dict) or len(entries) < len(table):
        raise CheckpointError(
            f"{path} has an {_TABLE} that is not a table from ids to tokens with "
            "their content. Download the tokenizer again."
        )
    return {
        _id(path, content, int(key) if key.isdecimal() else key): (content, flags)
        for key, (content, flags) in zip(table, entries, strict=True)
    }


def _id(path: Path, content: str, id: Any) -> int:
    if type(id) is int and 0 <= id < 2**31:
        return id
    raise CheckpointError(
        f"{path} gives the token {content!r} the id {id!r}, which is not a whole "
        "number under 2^31. Download the tokenizer again."
    )


def _entries(tokens: Any) -> list[tuple[str, dict[str, bool]]]:
    """Tokens and their flags, from a list of names and objects."""
    entries = []
    for token in tokens if isinstance(tokens, list) else []:
        fields = {"content": token} if isinstance(token, str) else token
        if isinstance(fields, dict) and isinstance(fields.get("content"), str):
            flags = {k: v for k, v in fields.items() if k in _FLAGS and type(v) is bool}
            entries.append((fields["content"], flags))
    return entries
