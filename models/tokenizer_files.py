"""From the files of a model to its tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from tsi.errors import CheckpointError
from tsi.models import llama_tokenizer
from tsi.models.control_tokens import add_tokens, roles_of, tokenizer_fields
from tsi.models.files import sentence
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
    fields = tokenizer_fields(path)
    model, generation = (
        read_json(path / name) if (path / name).is_file() else {}
        for name in ("config.json", "generation_config.json")
    )

    def build() -> tokenizers.Tokenizer:
        text = source.read_text(encoding="utf-8")
        if llama_tokenizer.is_rebuilt(model, fields, text):
            text = llama_tokenizer.rebuilt(fields, text)
            for role, token in llama_tokenizer.DEFAULTS.items():
                fields.setdefault(role, token)
        backend = tokenizers.Tokenizer.from_str(text)
        add_tokens(path, fields, backend)
        return backend

    backend = guarded(source, build)
    roles = roles_of(fields)
    ids = {role: backend.token_to_id(token) for role, token in roles.items()}
    bos, eos = ids.get("bos_token"), ids.get("eos_token")
    stops = generation.get("eos_token_id")
    extra = stops if isinstance(stops, list) else [stops]
    template = _template(path, fields.get("chat_template"))
    if (path / "chat_template.jinja").is_file():
        template = (path / "chat_template.jinja").read_text(encoding="utf-8")
    # As transformers does, which takes no notice of add_bos_token beside this file.
    first = backend.encode("", add_special_tokens=True).ids[:1]
    return Tokenizer(
        backend,
        bos_id=bos,
        eos_ids=[id for id in (eos, *extra) if type(id) is int],
        pad_id=ids.get("pad_token"),
        add_bos=first == [bos],
        chat_template=template,
        roles=roles,
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
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except OSError as error:
        raise CheckpointError(sentence(error, path)) from None
    except BaseException as error:
        raise CheckpointError(
            f"{path} does not hold a usable tokenizer: {error}."
        ) from None
