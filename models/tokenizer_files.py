"""From the files of a model to its tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from tsi.errors import CheckpointError
from tsi.models.safetensors import read_json
from tsi.models.tokenizer import Tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face folder or a ``.gguf`` file.

    Raises:
        CheckpointError: it is absent, malformed or of a kind that is not supported.
    """
    path = Path(path)
    if path.is_file():
        from tsi.models.gguf_tokenizer import tokenizer_from_gguf

        tokenizer = tokenizer_from_gguf(path)
        tokenizer.name = str(path)
        return tokenizer
    source = path / "tokenizer.json"
    if not source.is_file():
        raise CheckpointError(
            f"There is no tokenizer.json in {path}; tokenizers in other formats are "
            "not read (transformers converts them: load and save_pretrained)."
        )
    backend = guarded(source, lambda: tokenizers.Tokenizer.from_file(str(source)))
    fields, generation = (
        read_json(path / name) if (path / name).is_file() else {}
        for name in ("tokenizer_config.json", "generation_config.json")
    )

    def id_of(role: str) -> int | None:
        token = fields.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        return backend.token_to_id(token) if isinstance(token, str) else None

    bos, eos = id_of("bos_token"), id_of("eos_token")
    stops = generation.get("eos_token_id")
    extra = stops if isinstance(stops, list) else [stops]
    template = _template(path, fields.get("chat_template"))
    if (path / "chat_template.jinja").is_file():
        template = (path / "chat_template.jinja").read_text(encoding="utf-8")
    # Where the configuration does not say, the post-processor shows it.
    first = backend.encode("", add_special_tokens=True).ids[:1]
    return Tokenizer(
        backend,
        bos_id=bos,
        eos_ids=[id for id in (eos, *extra) if type(id) is int],
        pad_id=id_of("pad_token"),
        add_bos=bool(fields.get("add_bos_token", first == [bos])),
        chat_template=template,
        name=str(path),
    )


def _template(path: Path, stored: Any) -> str | None:
    """The chat template, of several the one named default."""
    if isinstance(stored, list):
        named = {t.get("name"): t.get("template") for t in stored if type(t) is dict}
        stored = named.get("default", named)
    if stored is None or isinstance(stored, str):
        return stored
    raise CheckpointError(
        f"{path / 'tokenizer_config.json'} has a chat_template that is neither a text "
        "nor a list with one named default."
    )


def guarded(path: Path, build: Callable[[], Any]) -> Any:
    """Call into the Rust package; what it raises becomes a CheckpointError.

    Its panics derive from BaseException alone, so that clause is as wide as it is.
    """
    try:
        return build()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CheckpointError(
            f"{path} does not hold a usable tokenizer: {error}."
        ) from None
