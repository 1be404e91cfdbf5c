"""Llama 2 and 3, TinyLlama, SmolLM2, and the tiny models that ship here.

=================  =================================================================
norms              RMSNorm before the attention, before the feed-forward layer and
                   after the last block
query, key norm    none
attention          grouped queries; biases on queries, keys, values and output where
                   ``attention_bias`` is true, else none
rotary embedding   the whole head, base ``rope_theta``; Llama 3 stretches long
                   wavelengths ("llama3"), and the other scalings are read too
sliding window     none
feed-forward       down(silu(gate(x)) * up(x)); biases where ``mlp_bias`` is true
vocabulary head    ``lm_head``; the embedding where ``tie_word_embeddings`` is true
=================  =================================================================

References:
    Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783.
"""

from collections.abc import Mapping
from typing import Any

from tsi.models.decoder_config import DecoderConfig
from tsi.models.families.config_fields import (
    read_activation,
    read_eos_ids,
    read_max_length,
    read_norm_epsilon,
    read_sizes,
    write_attention_bias,
    write_fields,
)
from tsi.models.families.family import Family
from tsi.models.families.features import refuse_features
from tsi.models.families.rope_fields import read_rope
from tsi.models.families.values import read_flag

NAME = "Llama"
FEATURES = ("attention_bias", "mlp_bias")
"""Fields that are read here and that other families refuse."""
ROPE_SCALINGS = ("llama3", "linear", "dynamic", "yarn", "longrope")
DEFAULTS: dict[str, Any] = {"eos_token_id": 2}
"""Fields that config.json may leave out."""

TENSORS = {
    "model.embed_tokens.weight": "trunk.embedding",
    "model.norm.weight": "trunk.norm.scale",
    "lm_head.weight": "head.kernel",
}
LAYER_TENSORS = {
    "input_layernorm.weight": "attention_norm.scale",
    "self_attn.q_proj.weight": "attention.query.kernel",
    "self_attn.q_proj.bias": "attention.query.bias",
    "self_attn.k_proj.weight": "attention.key.kernel",
    "self_attn.k_proj.bias": "attention.key.bias",
    "self_attn.v_proj.weight": "attention.value.kernel",
    "self_attn.v_proj.bias": "attention.value.bias",
    "self_attn.o_proj.weight": "attention.out.kernel",
    "self_attn.o_proj.bias": "attention.out.bias",
    "post_attention_layernorm.weight": "feed_forward_norm.scale",
    "mlp.gate_proj.weight": "feed_forward.gate.kernel",
    "mlp.gate_proj.bias": "feed_forward.gate.bias",
    "mlp.up_proj.weight": "feed_forward.up.kernel",
    "mlp.up_proj.bias": "feed_forward.up.bias",
    "mlp.down_proj.weight": "feed_forward.down.kernel",
    "mlp.down_proj.bias": "feed_forward.down.bias",
}


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """The configuration that the fields of a ``config.json`` describe.

    Raises:
        CheckpointError: a field asks for a feature that this port does not support.
    """
    refuse_features(fields, NAME, FEATURES)
    fields = DEFAULTS | dict(fields)
    rope = read_rope(fields, NAME, ROPE_SCALINGS)
    bias = read_flag(fields, "attention_bias")
    return DecoderConfig(
        **read_sizes(fields),
        family="llama",
        max_length=read_max_length(fields, rope),
        eos_ids=read_eos_ids(fields),
        norm_epsilon=read_norm_epsilon(fields),
        attention_bias=bias,
        output_bias=bias,
        rope=rope,
        activation=read_activation(fields, "hidden_act"),
        mlp_bias=read_flag(fields, "mlp_bias"),
        tied=read_flag(fields, "tie_word_embeddings"),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too.

    Raises:
        CheckpointError: a bias on some of the attention's projections only.
    """
    fields = write_fields(config, "llama") | write_attention_bias(config)
    return fields | {"mlp_bias": config.mlp_bias}


FAMILY = Family("llama", NAME, config_from_hf, config_to_hf, TENSORS, LAYER_TENSORS)
