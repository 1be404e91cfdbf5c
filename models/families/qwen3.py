"""The dense Qwen3 models: Llama's block with a norm on each head of queries and keys.

=================  =================================================================
norms              RMSNorm before the attention, before the feed-forward layer and
                   after the last block
query, key norm    RMSNorm over each head, before the rotary embedding; one scale per
                   layer that all heads share
attention          grouped queries; ``head_dim`` need not be width / heads; biases on
                   queries, keys, values and output where ``attention_bias`` is true,
                   as in no released model
rotary embedding   the whole head, base ``rope_theta``; YaRN for long contexts, and
                   the other scalings are read too
sliding window     none unless ``use_sliding_window`` is true: then ``sliding_window``
                   positions, in the layers that ``layer_types`` names or, without
                   it, in all from layer ``max_window_layers`` on
feed-forward       down(silu(gate(x)) * up(x)), without biases
vocabulary head    ``lm_head``; the embedding where ``tie_word_embeddings`` is true
                   (0.6B to 4B)
=================  =================================================================

The models with experts are another architecture, which is not supported.

Reference: Yang et al. 2025, arXiv 2505.09388.
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
from tsi.models.families.windows import read_qwen_windows, write_qwen_windows

NAME = "Qwen3"
FEATURES = (
    "attention_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
)
"""Fields that are read here and that other families refuse."""
ROPE_SCALINGS = ("llama3", "linear", "dynamic", "yarn", "longrope")
DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 32_768,
    "max_window_layers": 28,
    "sliding_window": 4096,
}
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
    "self_attn.q_norm.weight": "attention.query_norm.scale",
    "self_attn.k_proj.weight": "attention.key.kernel",
    "self_attn.k_proj.bias": "attention.key.bias",
    "self_attn.k_norm.weight": "attention.key_norm.scale",
    "self_attn.v_proj.weight": "attention.value.kernel",
    "self_attn.v_proj.bias": "attention.value.bias",
    "self_attn.o_proj.weight": "attention.out.kernel",
    "self_attn.o_proj.bias": "attention.out.bias",
    "post_attention_layernorm.weight": "feed_forward_norm.scale",
    "mlp.gate_proj.weight": "feed_forward.gate.kernel",
    "mlp.up_proj.weight": "feed_forward.up.kernel",
    "mlp.down_proj.weight": "feed_forward.down.kernel",
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
        family="qwen3",
        max_length=read_max_length(fields, rope),
        eos_ids=read_eos_ids(fields),
        norm_epsilon=read_norm_epsilon(fields),
        query_key_norm=True,
        attention_bias=bias,
        output_bias=bias,
        rope=rope,
        sliding_window=read_qwen_windows(fields, NAME, rope),
        activation=read_activation(fields, "hidden_act"),
        tied=read_flag(fields, "tie_word_embeddings"),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too.

    Raises:
        CheckpointError: a bias on some of the attention's projections only.
    """
    fields = write_fields(config, "qwen3") | write_qwen_windows(config)
    return fields | write_attention_bias(config)


FAMILY = Family("qwen3", NAME, config_from_hf, config_to_hf, TENSORS, LAYER_TENSORS)
