"""Which layers of a Qwen model attend to a window: those after the first few."""

from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.decoder_config import DecoderConfig, Local
from tsi.models.families.config_fields import flag
from tsi.models.rotary import Rope

FIELDS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
WINDOW, FULL_LAYERS = 4096, 28
"""Of a configuration that uses windows and does not say how wide, and from where on."""
KINDS = {"sliding_attention": True, "full_attention": False}


def windows_from_hf(
    fields: Mapping[str, Any], family: str, num_layers: int, rope: Rope
) -> Local | None:
    """Read ``use_sliding_window``, ``max_window_layers`` and ``layer_types``.

    Raises:
        CheckpointError: a layer type that is neither a window nor everything, or
            windows in ``layer_types`` alone.
    """
    used = flag(fields, "use_sliding_window")
    window = fields.get("sliding_window", WINDOW) if used else None
    kinds = fields.get("layer_types")
    if kinds is None:
        full = fields.get("max_window_layers", FULL_LAYERS)
        if window is not None and (type(full) is not int or full < 0):
            raise CheckpointError(
                f"config.json has max_window_layers={full!r}, which is not a "
                "number of layers. Correct it, or choose another checkpoint."
            )
        layers = tuple(window is not None and i >= full for i in range(num_layers))
    else:
        layers = layers_from_types(kinds, family, num_layers)
    if not any(layers):
        return None
    if window is None:
        raise CheckpointError(
            "config.json has sliding_attention in layer_types and "
            "use_sliding_window=false: it contradicts itself."
        )
    return Local(window, layers, rope)


def layers_from_types(kinds: Any, family: str, num_layers: int) -> tuple[bool, ...]:
    """Which of the layers attend to a window, from a list of layer types.

    Raises:
        CheckpointError: an unknown type, or not one for each layer.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise CheckpointError(
            f"config.json asks for layer_types {', '.join(unknown)}, which the "
            f"{family} port does not do (it does {', '.join(KINDS)}); choose another "
            "checkpoint."
        )
    if len(kinds) != num_layers:
        raise CheckpointError(
            f"config.json has {len(kinds)} layer_types for {num_layers} layers."
        )
    return tuple(KINDS[kind] for kind in kinds)


def layer_types(config: DecoderConfig) -> list[str]:
    """The list of layer types of a configuration."""
    layers = (False,) * config.num_layers
    if config.local is not None:
        layers = config.local.layers
    return ["sliding_attention" if local else "full_attention" for local in layers]


def windows_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a Qwen ``config.json`` that say which layers have windows."""
    local = config.local
    return {
        "use_sliding_window": local is not None,
        "sliding_window": local.window if local is not None else None,
        "layer_types": layer_types(config),
    }
