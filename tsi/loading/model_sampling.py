"""How a model's authors sample from it, as its generation_config.json says.

Asked for, it decides the policy's temperature and truncation; not asked for, it is
mentioned, since results differ by it. As in transformers it counts where ``do_sample``
is true; fields that are absent change nothing here.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tsi.decoding.repetition import check_penalty
from tsi.decoding.truncation import Truncation
from tsi.errors import CheckpointError, ConfigurationError
from tsi.models.files import format_path
from tsi.models.tensors.safetensors import read_json

NEUTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "temperature": 1.0,
        "top_k": None,
        "top_p": 1.0,
        "min_p": None,
        "repetition_penalty": 1.0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "no_repeat_ngram_size": 0,
        "encoder_repetition_penalty": 1.0,
    }
)
"""Fields that change what is drawn, each with the value that changes nothing."""
DONE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Those of them that are done here."""


class Drawing(NamedTuple):
    """How tokens are drawn.

    Attributes:
        temperature: of the policy.
        truncation: what it may write.
        repetition_penalty: the price of what it has read before; None for none.
        notes: what a user should know of it, a sentence each.
    """

    temperature: float = 1.0
    truncation: Truncation = Truncation()
    repetition_penalty: float | None = None
    notes: tuple[str, ...] = ()


def drawing_of(
    path: Path,
    temperature: float | None,
    truncation: Truncation,
    repetition_penalty: float | None = None,
    *,
    as_the_model_says: bool,
) -> Drawing:
    """What is used for a policy, and what of its own wishes is not.

    Args:
        path: of the policy, a folder or a file; only a folder has wishes.
        temperature: what the user says; None for nothing.
        truncation: what the user says of each part; None for nothing.
        repetition_penalty: what the user says; None for nothing.
        as_the_model_says: whether the model decides what the user does not.

    Raises:
        CheckpointError: the file is no JSON object, or a field is no number or below 0.
    """
    wishes = _wishes(path)
    undone = {name: wishes[name] for name in wishes if name not in DONE}
    warm = 1.0 if temperature is None else temperature
    said = Drawing(warm, truncation, repetition_penalty)
    if as_the_model_says:
        parts = {
            # Zero is how some files say that nothing is truncated.
            name: (wishes.get(name) or None) if value is None else value
            for name, value in truncation._asdict().items()
        }
        warm = wishes.get("temperature", 1.0) if temperature is None else temperature
        penalty = repetition_penalty
        if penalty is None:
            penalty = wishes.get("repetition_penalty")
        used = Drawing(float(warm), Truncation(**parts), penalty)
        try:
            used.truncation.check()
            if penalty is not None:
                check_penalty(penalty)
        except ConfigurationError as error:
            raise CheckpointError(f"{format_path(_file(path))}: {error}") from error
        return used._replace(notes=_notes(undone, "is not done here"))
    told = (said.temperature, *truncation, repetition_penalty)
    now = dict(zip(DONE, told, strict=True))
    unused = {
        name: value
        for name, value in wishes.items()
        if name not in DONE or value != now[name]
    }
    return said._replace(notes=_notes(unused, "is not used; see --model-sampling"))


def _notes(unused: Mapping[str, Any], what: str) -> tuple[str, ...]:
    listed = ", ".join(f"{name} {value}" for name, value in unused.items())
    sentence = f"the policy's generation_config.json has {listed}, which {what}."
    return (sentence,) if unused else ()


def _file(path: Path) -> Path:
    return path / "generation_config.json"


def _wishes(path: Path) -> dict[str, Any]:
    """Fields that change what is drawn."""
    if not _file(path).is_file():
        return {}
    fields = read_json(_file(path))
    if fields.get("do_sample") is not True:
        return {}
    found = {}
    for name, neutral in NEUTRAL.items():
        value = fields.get(name)
        if value is None:
            continue
        number = type(value) in (int, float) and math.isfinite(value) and value >= 0
        if not number:
            raise CheckpointError(
                f"{format_path(_file(path))} has {name}={value!r}, which is not a "
                "non-negative number. Correct it, or take the field out."
            )
        if value != neutral and not (name == "top_k" and value == 0):
            found[name] = value
    return found
