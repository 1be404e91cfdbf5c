"""Qwen2, Qwen2.5, Qwen2.5-Math and models trained from them: Llama's block with biases.

=================  =================================================================
norms              RMSNorm before the attention, before the feed-forward layer and
                   after the last block
query, key norm    none
attention          grouped queries; biases on queries, keys and values always, none
                   on the output
rotary embedding   the whole head, base ``rope_theta``; YaRN for long contexts, and
                   the other scalings are read too
sliding window     none unless ``use_sliding_window`` is true: then ``sliding_window``
                   positions, in the layers that ``layer_types`` names or, without
                   it, in all from layer ``max_window_layers`` on
feed-forward       down(silu(gate(x)) * up(x)), without biases
vocabulary head    ``lm_head``; the embedding where ``tie_word_embeddings`` is true
                   (0.5B to 3B)
=================  =================================================================

References: Yang et al. 2024, arXiv 2407.10671 and 2412.15115.
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
    write_fields,
)
from tsi.models.families.family import Family
from tsi.models.families.features import refuse_features
from tsi.models.families.rope_fields import read_rope
from tsi.models.families.values import read_flag
from tsi.models.families.windows import read_qwen_windows, write_qwen_windows

NAME = "Qwen2"
FEATURES = (
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
)
"""Fields that are read here and that other families refuse."""
ROPE_SCALINGS = ("llama3", "linear", "dynamic", "yarn", "longrope")
DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 32,
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
    "self_attn.k_proj.weight": "attention.key.kernel",
    "self_attn.k_proj.bias": "attention.key.bias",
    "self_attn.v_proj.weight": "attention.value.kernel",
    "self_attn.v_proj.bias": "attention.value.bias",
    "self_attn.o_proj.weight": "attention.out.kernel",
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
    return DecoderConfig(
        **read_sizes(fields),
        family="qwen2",
        max_length=read_max_length(fields, rope),
        eos_ids=read_eos_ids(fields),
        norm_epsilon=read_norm_epsilon(fields),
        attention_bias=True,
        rope=rope,
        sliding_window=read_qwen_windows(fields, NAME, rope),
        activation=read_activation(fields, "hidden_act"),
        tied=read_flag(fields, "tie_word_embeddings"),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too."""
    return write_fields(config, "qwen2") | write_qwen_windows(config)


FAMILY = Family("qwen2", NAME, config_from_hf, config_to_hf, TENSORS, LAYER_TENSORS)
