"""Models from the Hugging Face hub: safetensors, configuration and tokenizer, no code.

The hub's own client keeps them in its cache, where other programs find them too, and
uses the token and the mirror that the user has set up for it. Pickled weights and
Python files are never asked for.
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
# Folders hold the same weights in other layouts, and adapters are not whole models.
NOT_FILES = ("*/*", "consolidated*", "adapter_*")

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, ``organisation/name``."""
    return _ID.fullmatch(text) is not None and not text.endswith(".gguf")


def fetch(repo: str) -> Path:
    """Fetch a model from the hub unless its newest release is here already.

    Args:
        repo: the hub id, ``organisation/name``.

    Returns:
        The folder, which :func:`tsi.models.loading.checkpoint.load` reads. Without a
        network it is the one that was fetched before.

    Raises:
        DownloadError: the hub cannot be reached, has no such model, or wants a licence
            to be accepted first.
        CheckpointError: the model has no safetensors.
    """
    try:
        folder = _snapshot(repo)
    # The client lets through what its HTTP library raises, whichever that is.
    except Exception as error:
        raise DownloadError(_refusal(repo, error)) from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(_no_safetensors(repo))
    return folder


def cached(repo: str) -> Path | None:
    """The folder of a model that was fetched whole before, or None; asks no network."""
    try:
        folder = _snapshot(repo, local_files_only=True)
        shards = {SINGLE}
        if not (folder / SINGLE).is_file():
            shards = set(read_json(folder / INDEX)["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, CheckpointError):
        return None
    wanted = {"config.json", *map(str, shards)}
    return folder if all((folder / name).is_file() for name in wanted) else None


def _snapshot(repo: str, **options: Any) -> Path:
    folder = huggingface_hub.snapshot_download(
        repo, allow_patterns=list(FILES), ignore_patterns=list(NOT_FILES), **options
    )
    return Path(str(folder))


def _refusal(repo: str, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    match type(error).__name__:
        case "GatedRepoError":
            return (
                f"The hub gives {repo} only to who has accepted its licence: do so at "
                f"https://huggingface.co/{repo}, then log in with `hf auth login`."
            )
        case "RepositoryNotFoundError" | "HFValidationError":
            return (
                f"The hub has no model {repo} that you may see; check the spelling, or "
                "log in with `hf auth login` if it is private."
            )
    return (
        f"{repo} is neither here nor could it be fetched from the Hugging Face hub "
        f"({first}). Check the network, or give a local folder or a .gguf file."
    )


def _no_safetensors(repo: str) -> str:
    """What a repository has in their place, as far as the hub says."""
    try:
        files = huggingface_hub.list_repo_files(repo)
    except Exception:
        files = []
    pickled = [f for f in files if f.endswith((".bin", ".pt", ".pth"))]
    converted = [f for f in files if f.endswith(".gguf")]
    if pickled:
        return (
            f"{repo} has only pickled weights ({', '.join(pickled[:5])}), which can "
            "run code when loaded and are never read. Convert them where you trust "
            "them: transformers' AutoModelForCausalLM.from_pretrained(name)"
            ".save_pretrained(folder) writes model.safetensors."
        )
    if converted:
        return (
            f"{repo} has no safetensors but GGUF files ({', '.join(converted[:5])}); "
            "download one of them and give its path."
        )
    return f"{repo} has no safetensors; choose another model."
