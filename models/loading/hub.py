"""Models from the Hugging Face hub: safetensors, configuration and tokenizer, no code.

The hub's own client keeps them in its cache, which other programs share, and uses the
token and the mirror that the user has configured. Pickled weights and Python files are
never downloaded.
"""

import re
from pathlib import Path
from typing import Any

import huggingface_hub

from tsi.errors import CheckpointError, DownloadError
from tsi.models.tensors.safetensors import INDEX, SINGLE, read_json

FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# Subfolders hold the same weights in other layouts, and adapters are not whole models.
IGNORED_FILES = ("*/*", "consolidated*", "adapter_*")

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, ``organisation/name``."""
    return _ID.fullmatch(text) is not None and not text.endswith(".gguf")


def fetch(repo: str) -> Path:
    """Fetch a model from the hub, unless its newest release is in the cache.

    Args:
        repo: the hub id, ``organisation/name``.

    Returns:
        The folder, for :func:`tsi.models.loading.checkpoint.load`. Without a network
        it is the one that was fetched last.

    Raises:
        DownloadError: the hub cannot be reached, has no such model, or requires that
            a licence is accepted first.
        CheckpointError: the model has no safetensors.
    """
    try:
        folder = _snapshot(repo)
    # The client passes on the errors of its HTTP library, whichever that is.
    except Exception as error:
        raise DownloadError(_error_message(repo, error)) from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(_missing_safetensors_message(repo))
    return folder


def find_cached(repo: str) -> Path | None:
    """The folder of a model that is whole in the cache, or None; uses no network."""
    try:
        folder = _snapshot(repo, local_files_only=True)
        shards = {SINGLE}
        if not (folder / SINGLE).is_file():
            shards = set(read_json(folder / INDEX)["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, CheckpointError):
        return None
    names = {"config.json", *map(str, shards)}
    return folder if all((folder / name).is_file() for name in names) else None


def _snapshot(repo: str, **options: Any) -> Path:
    folder = huggingface_hub.snapshot_download(
        repo, allow_patterns=list(FILES), ignore_patterns=list(IGNORED_FILES), **options
    )
    return Path(str(folder))


def _error_message(repo: str, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    match type(error).__name__:
        case "GatedRepoError":
            return (
                f"The hub gives {repo} only to users who have accepted its licence. "
                f"Accept it at https://huggingface.co/{repo}, then log in with "
                "`hf auth login`."
            )
        case "RepositoryNotFoundError" | "HFValidationError":
            return (
                f"The hub has no model {repo} that you have access to. Check the "
                "spelling, or log in with `hf auth login` if it is private."
            )
    return (
        f"{repo} is not in the cache and could not be fetched from the Hugging Face "
        f"hub ({first}). Check the network, or give a local folder or a .gguf file."
    )


def _missing_safetensors_message(repo: str) -> str:
    """For messages: the weights that a repository has in other formats."""
    try:
        files = huggingface_hub.list_repo_files(repo)
    except Exception:
        files = []
    pickle_files = [f for f in files if f.endswith((".bin", ".pt", ".pth"))]
    gguf_files = [f for f in files if f.endswith(".gguf")]
    if pickle_files:
        return (
            f"{repo} has only pickled weights ({', '.join(pickle_files[:5])}), which "
            "can run code when loaded and are never read. Convert them where you trust "
            "them: transformers' AutoModelForCausalLM.from_pretrained(name)"
            ".save_pretrained(folder) writes model.safetensors."
        )
    if gguf_files:
        return (
            f"{repo} has no safetensors but GGUF files ({', '.join(gguf_files[:5])}); "
            "download one of them and give its path."
        )
    return f"{repo} has no safetensors; choose another model."
