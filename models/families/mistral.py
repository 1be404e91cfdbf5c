"""The Mistral family: Llama's blocks, every layer attending to a window (or to all).

Reference: Jiang et al. 2023, arXiv 2310.06825.
"""

from collections.abc import Mapping
from typing import Any

from tsi.models.decoder_config import DecoderConfig, Local
from tsi.models.families.config_fields import (
    SHARED_KINDS,
    common,
    common_to_hf,
    refuse,
    rope_of,
    window_of,
)
from tsi.models.families.family import Family

NAME = "Mistral"
DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "eos_token_id": 2,
}
"""Of a configuration that does not say; null for the window means none."""


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """Read the fields of a ``config.json``.

    Raises:
        CheckpointError: one asks for a feature that the port does not have.
    """
    refuse(fields, NAME, ("sliding_window",))
    fields = DEFAULTS | dict(fields)
    rope = rope_of(fields, NAME, SHARED_KINDS)
    shape = common(fields, "mistral", rope)
    window = window_of(fields)
    local = Local(window, (True,) * shape["num_layers"], rope) if window else None
    return DecoderConfig(**shape, local=local)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too."""
    window = config.local.window if config.local is not None else None
    return common_to_hf(config, "mistral") | {"sliding_window": window}


FAMILY = Family("mistral", NAME, config_from_hf, config_to_hf)
