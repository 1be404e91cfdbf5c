"""The sampling settings of a model, from its generation_config.json.

If requested, the settings define the temperature and the truncation of the policy. If
not, a note lists them, since they would change results. As in transformers, they apply
only if ``do_sample`` is true; missing fields change nothing.
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
"""Fields that affect sampling, each with its neutral value."""
SUPPORTED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""The fields that are supported."""


class Drawing(NamedTuple):
    """How tokens are drawn.

    Attributes:
        temperature: of the policy.
        truncation: of the policy.
        repetition_penalty: of the policy; None for none.
        notes: notes for the user, one sentence each.
    """

    temperature: float = 1.0
    truncation: Truncation = Truncation()
    repetition_penalty: float | None = None
    notes: tuple[str, ...] = ()


def combine_drawing(
    path: Path,
    temperature: float | None,
    truncation: Truncation,
    repetition_penalty: float | None = None,
    *,
    use_model_settings: bool,
) -> Drawing:
    """Combine the settings of the user with those of the model.

    Args:
        path: folder or file of the policy; only a folder has settings.
        temperature: setting of the user, or None.
        truncation: settings of the user; a field may be None.
        repetition_penalty: setting of the user, or None.
        use_model_settings: whether the settings of the model replace None.

    Raises:
        CheckpointError: if the file is not a JSON object, or a field is not a
            non-negative number.
    """
    settings = _read_settings(path)
    unsupported = {name: settings[name] for name in settings if name not in SUPPORTED}
    temperature_used = 1.0 if temperature is None else temperature
    user_drawing = Drawing(temperature_used, truncation, repetition_penalty)
    if use_model_settings:
        parts = {
            # Some files use zero for no truncation.
            name: (settings.get(name) or None) if value is None else value
            for name, value in truncation._asdict().items()
        }
        temperature_used = (
            settings.get("temperature", 1.0) if temperature is None else temperature
        )
        penalty = repetition_penalty
        if penalty is None:
            penalty = settings.get("repetition_penalty")
        drawing = Drawing(float(temperature_used), Truncation(**parts), penalty)
        try:
            drawing.truncation.check()
            if penalty is not None:
                check_penalty(penalty)
        except ConfigurationError as error:
            raise CheckpointError(f"{format_path(_file(path))}: {error}") from error
        return drawing._replace(notes=_notes(unsupported, "is not supported"))
    user_values = (user_drawing.temperature, *truncation, repetition_penalty)
    user_settings = dict(zip(SUPPORTED, user_values, strict=True))
    unused_settings = {
        name: value
        for name, value in settings.items()
        if name not in SUPPORTED or value != user_settings[name]
    }
    return user_drawing._replace(
        notes=_notes(unused_settings, "is not used; see --model-sampling")
    )


def _notes(settings: Mapping[str, Any], reason: str) -> tuple[str, ...]:
    listed = ", ".join(f"{name} {value}" for name, value in settings.items())
    sentence = f"the policy's generation_config.json has {listed}, which {reason}."
    return (sentence,) if settings else ()


def _file(path: Path) -> Path:
    return path / "generation_config.json"


def _read_settings(path: Path) -> dict[str, Any]:
    """Fields of the model that affect sampling and differ from their neutral value."""
    if not _file(path).is_file():
        return {}
    fields = read_json(_file(path))
    if fields.get("do_sample") is not True:
        return {}
    settings = {}
    for name, neutral in NEUTRAL.items():
        value = fields.get(name)
        if value is None:
            continue
        is_number = type(value) in (int, float) and math.isfinite(value) and value >= 0
        if not is_number:
            raise CheckpointError(
                f"{format_path(_file(path))} has {name}={value!r}, which is not a "
                "non-negative number. Correct it, or take the field out."
            )
        if value != neutral and not (name == "top_k" and value == 0):
            settings[name] = value
    return settings
