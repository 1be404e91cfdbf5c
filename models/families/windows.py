"""Sliding windows in a ``config.json``: how wide they are, and in which layers."""

from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.decoder_config import DecoderConfig, SlidingWindow
from tsi.models.families.values import read_flag
from tsi.models.rotary import Rope

KINDS = {"sliding_attention": True, "full_attention": False}


def read_window(fields: Mapping[str, Any], name: str = "sliding_window") -> int | None:
    """How many positions a query sees; None if the field is absent, null or zero.

    Raises:
        CheckpointError: the value is not a positive whole number.
    """
    value = fields.get(name)
    if value is None or (type(value) is int and value == 0):
        return None
    if type(value) is not int or not 0 < value < 2**31:
        raise CheckpointError(
            f"config.json has {name}={repr(value)[:50]}, which is not a positive whole "
            "number under 2^31. Correct it, or choose another checkpoint."
        )
    return value


def window_in_every_layer(
    fields: Mapping[str, Any], rope: Rope
) -> SlidingWindow | None:
    """The window of ``sliding_window`` in every layer; None if the field has none.

    Raises:
        CheckpointError: the value is not a positive whole number.
    """
    window = read_window(fields)
    if window is None:
        return None
    return SlidingWindow(window, (True,) * fields["num_hidden_layers"], rope)


def read_qwen_windows(
    fields: Mapping[str, Any], family: str, rope: Rope
) -> SlidingWindow | None:
    """The windows of a Qwen2 or Qwen3 model; None if no layer has one.

    ``use_sliding_window`` turns them on. The layers are those of ``layer_types`` or,
    without it, all from layer ``max_window_layers`` on.

    Args:
        fields: of config.json, with the family's defaults.
        family: its name, for messages.
        rope: the rotary embedding of all layers.

    Raises:
        CheckpointError: a layer type that is not supported, windows in ``layer_types``
            that ``use_sliding_window`` turns off, or a malformed number.
    """
    num_layers = fields["num_hidden_layers"]
    is_used = read_flag(fields, "use_sliding_window")
    window = fields["sliding_window"] if is_used else None
    kinds = fields.get("layer_types")
    if kinds is None:
        full = fields["max_window_layers"]
        if window is not None and (type(full) is not int or full < 0):
            raise CheckpointError(
                f"config.json has max_window_layers={full!r}, which is not a "
                "number of layers. Correct it, or choose another checkpoint."
            )
        layers = tuple(window is not None and i >= full for i in range(num_layers))
    else:
        layers = read_layer_types(kinds, family, num_layers)
    if not any(layers):
        return None
    if window is None:
        raise CheckpointError(
            "config.json has sliding_attention in layer_types and "
            "use_sliding_window=false, which contradict each other. Correct one of "
            "them, or choose another checkpoint."
        )
    return SlidingWindow(window, layers, rope)


def write_qwen_windows(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a Qwen2 or Qwen3 model that say which layers have a window."""
    windows = config.sliding_window
    return {
        "use_sliding_window": windows is not None,
        "sliding_window": windows.size if windows is not None else None,
        "layer_types": write_layer_types(config),
    }


def read_layer_types(kinds: Any, family: str, num_layers: int) -> tuple[bool, ...]:
    """Which layers attend to a window, from ``layer_types``.

    Raises:
        CheckpointError: a type that is not supported, or not one type per layer.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise CheckpointError(
            f"config.json has layer_types {', '.join(unknown)}, which the {family} "
            f"port does not support (supported: {', '.join(KINDS)}). Choose another "
            "checkpoint."
        )
    if len(kinds) != num_layers:
        raise CheckpointError(
            f"config.json has {len(kinds)} layer_types for {num_layers} layers. "
            "Correct it, or choose another checkpoint."
        )
    return tuple(KINDS[kind] for kind in kinds)


def write_layer_types(config: DecoderConfig) -> list[str]:
    """The ``layer_types`` of a configuration."""
    layers = (False,) * config.num_layers
    if config.sliding_window is not None:
        layers = config.sliding_window.layers
    return ["sliding_attention" if layer else "full_attention" for layer in layers]
