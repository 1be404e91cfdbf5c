"""The tokens that a folder adds to its vocabulary, and those that it gives a role.

Today they all stand in tokenizer.json and tokenizer_config.json. Older folders keep the
roles in special_tokens_map.json and the added tokens in added_tokens.json, which count
where tokenizer_config.json has no table of added tokens (``added_tokens_decoder``), as
in transformers' ``PreTrainedTokenizerBase._from_pretrained``.
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
    """The fields of a folder's tokenizer_config.json, with the roles of older ones.

    Raises:
        CheckpointError: one of the files is not a JSON object.
    """
    fields, roles = _optional(path / CONFIG), _optional(path / ROLES)
    return fields if _TABLE in fields else fields | roles


def roles_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """The token of each role: ``eos_token``, ``unk_token``, a model's own ones."""
    named = {
        role: value.get("content") if isinstance(value, dict) else value
        for role, value in fields.items()
        if role.endswith("_token")
    }
    return {role: token for role, token in named.items() if isinstance(token, str)}


def add_tokens(
    path: Path, fields: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> None:
    """Add to a tokenizer what its folder's files name beside tokenizer.json.

    A token that any of the files calls control is control: text must not be able to
    spell one. (transformers believes the last file that speaks of it.)

    Args:
        path: of the folder.
        fields: of :func:`tokenizer_fields`.
        backend: of tokenizer.json; changed in place.

    Raises:
        CheckpointError: an entry is malformed, or names another id than the next one.
    """
    roles = roles_of(fields)
    extra = [token for key in _LISTS for token in _entries(fields.get(key))]
    stored = backend.get_added_tokens_decoder()
    control = {token.content for token in stored.values() if token.special}
    control |= {*roles.values(), *(content for content, _ in extra)}
    if _TABLE in fields:
        source, listed = path / CONFIG, _table(path / CONFIG, fields[_TABLE])
    else:
        source, listed = path / ADDED, {}
        for content, id in _optional(source).items():
            flags = {
                "special": content in control,
                "normalized": content not in control,
            }
            listed[_id(source, content, id)] = (content, flags)
        # What tokenizer.json says of a token goes before what the older file does.
        for id in stored:
            listed.pop(id, None)
    for id, (content, flags) in sorted(listed.items()):
        special = flags.get("special", False) or content in control
        backend.add_tokens([AddedToken(content, **{**flags, "special": special})])
        if backend.token_to_id(content) != id:
            raise CheckpointError(
                f"{source} gives {content!r} the id {id}, and its place in the "
                f"vocabulary is {backend.token_to_id(content)}; one of the files "
                "belongs to another model. Download the tokenizer again."
            )
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for content, flags in [*_entries([fields[role] for role in roles]), *extra]:
        if content not in known:
            backend.add_tokens([AddedToken(content, **{**flags, "special": True})])
            known.add(content)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _table(path: Path, stored: Any) -> dict[int, tuple[str, dict[str, bool]]]:
    """The entries of ``added_tokens_decoder`` by id."""
    entries = _entries(list(stored.values())) if isinstance(stored, dict) else []
    if not isinstance(stored, dict) or len(entries) < len(stored):
        raise CheckpointError(
            f"{path} has an {_TABLE} that is not a table from ids to tokens with "
            "their content."
        )
    return {
        _id(path, content, int(key) if key.isdecimal() else key): (content, flags)
        for key, (content, flags) in zip(stored, entries, strict=True)
    }


def _id(path: Path, content: str, id: Any) -> int:
    if type(id) is int and 0 <= id < 2**31:
        return id
    raise CheckpointError(f"{path} gives the token {content!r} the id {id!r}.")


def _entries(stored: Any) -> list[tuple[str, dict[str, bool]]]:
    """Tokens, with their flags, out of a list of names and of objects."""
    entries = []
    for token in stored if isinstance(stored, list) else []:
        fields = {"content": token} if isinstance(token, str) else token
        if isinstance(fields, dict) and isinstance(fields.get("content"), str):
            flags = {k: v for k, v in fields.items() if k in _FLAGS and type(v) is bool}
            entries.append((fields["content"], flags))
    return entries
