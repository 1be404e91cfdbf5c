"""Rotary embeddings in a ``config.json``, read and written.

transformers 5 writes one table ``rope_parameters``; earlier releases write the field
``rope_theta`` and the table ``rope_scaling``. Both are read.

Source: transformers' modeling_rope_utils.py, for names and defaults.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.families.values import read_flag, read_number, read_table
from tsi.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    Scaling,
    YarnScaling,
)

Fields = Mapping[str, Any]

ORIGINAL_LENGTH = "original_max_position_embeddings"
DEFAULT_LENGTH = 2048
"""Positions of a configuration without ``max_position_embeddings``."""


def read_rope(
    fields: Fields,
    family: str,
    scalings: tuple[str, ...],
    *,
    theta: float = 10_000.0,
    parameters: Fields | None = None,
    partial: bool = False,
) -> Rope:
    """Read a rotary embedding.

    Args:
        fields: of config.json.
        family: its name, for messages.
        scalings: the values of ``rope_type`` that the family supports.
        theta: the base, if config.json has none.
        parameters: read instead of ``rope_parameters`` and ``rope_scaling``, where
            layers of one model differ.
        partial: whether the family may rotate only a part of each head.

    Raises:
        CheckpointError: another scaling, a part of a head where the family rotates
            whole heads, or a number out of range.
        KeyError: the scaling lacks a constant.
    """
    if parameters is None:
        parameters = read_table(fields, "rope_parameters")
        parameters = parameters or read_table(fields, "rope_scaling")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "su":  # LongRoPE's first name, in early Phi-3 checkpoints
        kind = "longrope"
    if kind not in ("default", *scalings):
        raise CheckpointError(
            f"config.json has the rotary scaling {kind!r}, which the {family} port "
            f"does not support (supported: {', '.join(('default', *scalings))}). "
            "Choose another checkpoint."
        )
    name = "partial_rotary_factor"
    fraction = read_number(parameters, name, read_number(fields, name, 1.0))
    if fraction != 1.0 and not partial:
        raise CheckpointError(
            f"config.json has {name}={fraction!r}, and the {family} port rotates whole "
            "heads only. Choose another checkpoint."
        )
    theta = read_number(fields, "rope_theta", theta)
    theta = read_number(parameters, "rope_theta", theta)
    if theta <= 1:
        raise CheckpointError(
            f"config.json has rope_theta={theta:g}; the base of the rotary wavelengths "
            "must be above 1. Correct it, or choose another checkpoint."
        )
    read = _READERS.get(kind)
    return Rope(theta, fraction, None if read is None else read(parameters, fields))


def _read_linear(rope: Fields, fields: Fields) -> Scaling:
    return LinearScaling(read_number(rope, "factor", None))


def _read_dynamic(rope: Fields, fields: Fields) -> Scaling:
    return DynamicScaling(read_number(rope, "factor", None))


def _read_llama3(rope: Fields, fields: Fields) -> Scaling:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (read_number(rope, name, None) for name in names)
    if low >= high:
        raise CheckpointError(
            f"config.json has low_freq_factor={low:g} and high_freq_factor={high:g}; "
            "frequencies are blended between the two, so the second must be larger. "
            "Correct it, or choose another checkpoint."
        )
    length = fields.get("max_position_embeddings")
    return Llama3Scaling(factor, low, high, read_number(rope, ORIGINAL_LENGTH, length))


def _read_yarn(rope: Fields, fields: Fields) -> Scaling:
    length = fields.get("max_position_embeddings")
    original = read_number(rope, ORIGINAL_LENGTH, length)
    factor = read_number(rope, "factor", (length or original) / original)
    return YarnScaling(
        factor,
        original,
        read_number(rope, "beta_fast", 32.0),
        read_number(rope, "beta_slow", 1.0),
        read_number(rope, "attention_factor", _yarn_attention(rope, factor)),
        rope.get("truncate") is None or read_flag(rope, "truncate"),
    )


def _yarn_attention(rope: Fields, factor: float) -> float:
    """YaRN's factor on attention where ``attention_factor`` is absent.

    The published code treats a scale of zero as absent.
    """
    names = ("mscale", "mscale_all_dim")
    if any(rope.get(name) in (None, 0) for name in names):
        return _temperature(factor, 1.0)
    numerator, denominator = (read_number(rope, name, None) for name in names)
    return _temperature(factor, numerator) / _temperature(factor, denominator)


def _temperature(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _read_longrope(rope: Fields, fields: Fields) -> Scaling:
    stretched = fields.get("max_position_embeddings", DEFAULT_LENGTH)
    # transformers prefers the field outside the table.
    original = read_number(rope, ORIGINAL_LENGTH, stretched)
    original = read_number(fields, ORIGINAL_LENGTH, original)
    factor = read_number(rope, "factor", stretched / original)
    attention = (
        math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    )
    short, long = (
        tuple(read_number({name: divisor}, name, None) for divisor in rope[name])
        for name in ("short_factor", "long_factor")
    )
    attention = read_number(rope, "attention_factor", attention)
    return LongRopeScaling(short, long, int(original), stretched, attention)


_READERS: dict[str, Callable[[Fields, Fields], Scaling]] = {
    "linear": _read_linear,
    "dynamic": _read_dynamic,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
    "longrope": _read_longrope,
}


def write_rope(rope: Rope) -> dict[str, Any]:
    """The ``rope_parameters`` of a rotary embedding."""
    fields: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        fields["partial_rotary_factor"] = rope.fraction
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        fields |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, DynamicScaling):
        fields |= {"rope_type": "dynamic", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        fields |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            ORIGINAL_LENGTH: int(scaling.original),
        }
    elif isinstance(scaling, YarnScaling):
        fields |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            ORIGINAL_LENGTH: int(scaling.original),
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention,
            "truncate": scaling.truncate,
        }
    elif isinstance(scaling, LongRopeScaling):
        fields |= {
            "rope_type": "longrope",
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            ORIGINAL_LENGTH: scaling.original,
            "attention_factor": scaling.attention,
        }
    return fields
