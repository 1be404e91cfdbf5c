"""Mistral 7B and its relatives: Llama's block with one sliding window in every layer.

=================  =================================================================
norms              RMSNorm before the attention, before the feed-forward layer and
                   after the last block
query, key norm    none
attention          grouped queries, without biases
rotary embedding   the whole head, base ``rope_theta``; released models have no
                   scaling, and all scalings are read
sliding window     ``sliding_window`` positions in every layer (4096 if the field is
                   absent); none if it is null, as from version 0.2 on
feed-forward       down(silu(gate(x)) * up(x)), without biases
vocabulary head    ``lm_head``; the embedding where ``tie_word_embeddings`` is true
=================  =================================================================

Reference: Jiang et al. 2023, arXiv 2310.06825.
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
from tsi.models.families.windows import window_in_every_layer

NAME = "Mistral"
FEATURES = ("sliding_window",)
"""Fields that are read here and that other families refuse."""
ROPE_SCALINGS = ("llama3", "linear", "dynamic", "yarn", "longrope")
DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "eos_token_id": 2,
}
"""Fields that config.json may leave out; ``sliding_window`` null means no window."""

TENSORS = {
    "model.embed_tokens.weight": "trunk.embedding",
    "model.norm.weight": "trunk.norm.scale",
    "lm_head.weight": "head.kernel",
}
LAYER_TENSORS = {
    "input_layernorm.weight": "attention_norm.scale",
    "self_attn.q_proj.weight": "attention.query.kernel",
    "self_attn.k_proj.weight": "attention.key.kernel",
    "self_attn.v_proj.weight": "attention.value.kernel",
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
        family="mistral",
        max_length=read_max_length(fields, rope),
        eos_ids=read_eos_ids(fields),
        norm_epsilon=read_norm_epsilon(fields),
        rope=rope,
        sliding_window=window_in_every_layer(fields, rope),
        activation=read_activation(fields, "hidden_act"),
        tied=read_flag(fields, "tie_word_embeddings"),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too."""
    window = config.sliding_window.size if config.sliding_window is not None else None
    return write_fields(config, "mistral") | {"sliding_window": window}


FAMILY = Family("mistral", NAME, config_from_hf, config_to_hf, TENSORS, LAYER_TENSORS)
