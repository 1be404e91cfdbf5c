"""The Qwen2 family: Llama's blocks with biases on queries, keys and values.

Qwen2, Qwen2.5, Qwen2.5-Math and what is trained from them.

Reference: Yang et al. 2024, arXiv 2407.10671 and 2412.15115.
"""

from collections.abc import Mapping
from typing import Any

from tsi.models.decoder_config import DecoderConfig
from tsi.models.families.config_fields import (
    SHARED_KINDS,
    common,
    common_to_hf,
    refuse,
    rope_of,
)
from tsi.models.families.family import Family
from tsi.models.families.windows import FIELDS, windows_from_hf, windows_to_hf

NAME = "Qwen2"
DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}
"""Of a configuration that does not say."""


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """Read the fields of a ``config.json``.

    Raises:
        CheckpointError: one asks for a feature that the port does not have.
    """
    refuse(fields, NAME, FIELDS)
    fields = DEFAULTS | dict(fields)
    rope = rope_of(fields, NAME, SHARED_KINDS)
    shape = common(fields, "qwen2", rope)
    local = windows_from_hf(fields, NAME, shape["num_layers"], rope)
    return DecoderConfig(**shape, attention_bias=True, local=local)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too."""
    return common_to_hf(config, "qwen2") | windows_to_hf(config)


FAMILY = Family("qwen2", NAME, config_from_hf, config_to_hf)
