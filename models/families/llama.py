"""The Llama family: Llama 2 and 3.x with its scaled rotary frequencies, TinyLlama,
SmolLM2, and the tiny models that ship here.

References:
    Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783.
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
    flag,
    refuse,
    rope_of,
)
from tsi.models.families.family import Family

NAME = "Llama"
DEFAULTS: dict[str, Any] = {"eos_token_id": 2}
"""Of a configuration that does not say, where they are not those of every family."""
DOES = ("attention_bias", "mlp_bias")


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """Read the fields of a ``config.json``.

    Raises:
        CheckpointError: one asks for a feature that the port does not have.
    """
    refuse(fields, NAME, DOES)
    fields = DEFAULTS | dict(fields)
    rope = rope_of(fields, NAME, SHARED_KINDS)
    return DecoderConfig(
        **common(fields, "llama", rope),
        **biases(fields),
        mlp_bias=flag(fields, "mlp_bias"),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too.

    Raises:
        CheckpointError: a bias in a part of the attention only.
    """
    with_bias = biases_to_hf(config) | {"mlp_bias": config.mlp_bias}
    return common_to_hf(config, "llama") | with_bias


FAMILY = Family("llama", NAME, config_from_hf, config_to_hf)
