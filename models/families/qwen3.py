"""The Qwen3 family: Llama's blocks with a norm on each head of queries and keys.

The dense models; those with experts are another architecture.

Reference: Yang et al. 2025, arXiv 2505.09388.
"""

from collections.abc import Mapping
from typing import Any

from tsi.models.decoder_config import DecoderConfig
from tsi.models.families.config_fields import (
    SHARED_KINDS,
    biases,
    biases_to_hf,
    common,
    common_to_hf,
    refuse,
    rope_of,
)
from tsi.models.families.family import Family
from tsi.models.families.windows import FIELDS, windows_from_hf, windows_to_hf

NAME = "Qwen3"
DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
}
"""Of a configuration that does not say; heads are not the width divided by them."""


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """Read the fields of a ``config.json``.

    Raises:
        CheckpointError: one asks for a feature that the port does not have.
    """
    refuse(fields, NAME, ("attention_bias", *FIELDS))
    fields = DEFAULTS | dict(fields)
    rope = rope_of(fields, NAME, SHARED_KINDS)
    shape = common(fields, "qwen3", rope)
    local = windows_from_hf(fields, NAME, shape["num_layers"], rope)
    return DecoderConfig(**shape, **biases(fields), query_key_norm=True, local=local)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too.

    Raises:
        CheckpointError: a bias in a part of the attention only.
    """
    fields = common_to_hf(config, "qwen3")
    return fields | windows_to_hf(config) | biases_to_hf(config)


FAMILY = Family("qwen3", NAME, config_from_hf, config_to_hf)
