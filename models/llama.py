"""The Llama family: Llama 2 and 3.x with its scaled rotary frequencies, TinyLlama,
SmolLM2, and the tiny models that ship here.

References:
    Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783.
"""

from collections.abc import Mapping
from typing import Any

from tsi.models.config_fields import common, common_to_hf, refuse, rope_of
from tsi.models.decoder import DecoderConfig
from tsi.models.family import Family

NAME = "Llama"


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """Read the fields of a ``config.json``.

    Raises:
        CheckpointError: one asks for a feature that the port does not have.
    """
    refuse(fields, NAME)
    rope = rope_of(fields, NAME, ("llama3", "linear", "yarn"))
    return DecoderConfig(**common(fields, "llama"), rope=rope)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too."""
    off = {"attention_bias": False, "mlp_bias": False}
    return common_to_hf(config, "llama") | off


FAMILY = Family("llama", NAME, config_from_hf, config_to_hf)
