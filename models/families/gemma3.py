"""The text model of Gemma 3: windows in five layers of six, norms around each branch.

=================  =================================================================
norms              RMSNorm before and after the attention and the feed-forward layer,
                   and after the last block; checkpoints store scale - 1
query, key norm    RMSNorm over each head, before the rotary embedding
attention          grouped queries; scores are multiplied by
                   ``query_pre_attn_scalar`` ^ -1/2, not head_dim ^ -1/2; biases on
                   queries, keys, values and output where ``attention_bias`` is true,
                   as in no released model
rotary embedding   the whole head. Layers that attend to everything: base
                   ``rope_theta`` (1e6), scaled (linear from 4B up). Layers with a
                   window: base ``rope_local_base_freq`` (1e4), not scaled.
                   transformers 5 writes the two under ``rope_parameters``, as
                   full_attention and sliding_attention
sliding window     ``sliding_window`` positions in the layers that ``layer_types``
                   names or, without it, in all but every sixth
                   (``sliding_window_pattern``)
feed-forward       down(gelu_tanh(gate(x)) * up(x)), without biases; the activation
                   is ``hidden_activation``
embedding          multiplied by the square root of the width
vocabulary head    the embedding (``tie_word_embeddings`` is true by default)
soft caps          c tanh(x / c) on attention scores (``attn_logit_softcapping``) and
                   on logits (``final_logit_softcapping``); none in released models.
                   transformers 5 reads the cap of scores and does not apply it
=================  =================================================================

Reference: Gemma Team 2025, arXiv 2503.19786.
"""

from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.decoder_config import DecoderConfig, SlidingWindow
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
from tsi.models.families.rope_fields import read_rope, write_rope
from tsi.models.families.values import read_flag, read_number, read_table
from tsi.models.families.windows import read_layer_types, write_layer_types
from tsi.models.rotary import Rope

NAME = "Gemma3"
FEATURES = (
    "attention_bias",
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
"""Fields that are read here and that other families refuse."""
ROPE_SCALINGS = ("llama3", "linear", "dynamic", "yarn")
THETA, WINDOW_THETA = 1_000_000.0, 10_000.0
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262_208,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "eos_token_id": 1,
}
"""Fields that config.json may leave out, as released ones do."""

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
    "post_attention_layernorm.weight": "attention_post_norm.scale",
    "pre_feedforward_layernorm.weight": "feed_forward_norm.scale",
    "mlp.gate_proj.weight": "feed_forward.gate.kernel",
    "mlp.up_proj.weight": "feed_forward.up.kernel",
    "mlp.down_proj.weight": "feed_forward.down.kernel",
    "post_feedforward_layernorm.weight": "feed_forward_post_norm.scale",
}


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """The configuration that the fields of a text model's ``config.json`` describe.

    Raises:
        CheckpointError: a field asks for a feature that this port does not support.
    """
    refuse_features(fields, NAME, FEATURES)
    fields = DEFAULTS | dict(fields)
    rope, window_rope = _read_ropes(fields)
    windows = SlidingWindow(fields["sliding_window"], _read_layers(fields), window_rope)
    bias = read_flag(fields, "attention_bias")
    return DecoderConfig(
        **read_sizes(fields),
        family="gemma3",
        max_length=read_max_length(fields, rope),
        eos_ids=read_eos_ids(fields),
        norm_epsilon=read_norm_epsilon(fields),
        norm_offset=1.0,
        post_norms=True,
        query_key_norm=True,
        query_scale=read_number(fields, "query_pre_attn_scalar", None) ** -0.5,
        attention_softcap=_read_cap(fields, "attn_logit_softcapping"),
        attention_bias=bias,
        output_bias=bias,
        rope=rope,
        sliding_window=windows if any(windows.layers) else None,
        activation=read_activation(fields, "hidden_activation"),
        embedding_scale=fields["hidden_size"] ** 0.5,
        tied=read_flag(fields, "tie_word_embeddings"),
        logit_softcap=_read_cap(fields, "final_logit_softcapping"),
    )


def _read_layers(fields: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers attend to a window."""
    num_layers, kinds = fields["num_hidden_layers"], fields.get("layer_types")
    if kinds is not None:
        return read_layer_types(kinds, NAME, num_layers)
    period = fields["sliding_window_pattern"]
    if type(period) is not int or period < 1:
        raise CheckpointError(
            f"config.json has sliding_window_pattern={period!r}, which is not "
            "a number of layers. Correct it, or choose another checkpoint."
        )
    return tuple((layer + 1) % period != 0 for layer in range(num_layers))


def _read_cap(fields: Mapping[str, Any], name: str) -> float | None:
    return None if fields.get(name) is None else read_number(fields, name, None)


def _read_ropes(fields: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """The rotary embedding of layers without a window, and that of layers with one.

    Raises:
        CheckpointError: a scaling that is not supported, or YaRN with truncate=false.
    """
    table = read_table(fields, "rope_parameters")
    if "full_attention" in table or "sliding_attention" in table:
        full = read_table(table, "full_attention")
        window = read_table(table, "sliding_attention")
    else:
        full = table or read_table(fields, "rope_scaling")
        window = {"rope_theta": fields.get("rope_local_base_freq", WINDOW_THETA)}
    if not all(parameters.get("truncate", True) for parameters in (full, window)):
        # transformers looks for it in rope_parameters, next to these two tables.
        raise CheckpointError(
            "config.json has truncate=false among YaRN's parameters of one kind of "
            f"layers, which transformers ignores and the {NAME} port does not support. "
            "Remove it, or choose another checkpoint."
        )
    length = {"max_position_embeddings": fields["max_position_embeddings"]}
    return (
        read_rope(fields, NAME, ROPE_SCALINGS, theta=THETA, parameters=full),
        read_rope(length, NAME, ROPE_SCALINGS, theta=WINDOW_THETA, parameters=window),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a text model's ``config.json``, which transformers reads too.

    Raises:
        CheckpointError: a bias on some of the attention's projections only.
    """
    fields = write_fields(config, "gemma3_text") | write_attention_bias(config)
    windows = config.sliding_window
    window_rope = windows.rope if windows is not None else Rope(WINDOW_THETA)
    scale = config.query_scale or config.head_width**-0.5
    return fields | {
        "hidden_activation": config.activation,
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": windows.size if windows is not None else 4096,
        "layer_types": write_layer_types(config),
        "rope_parameters": {
            "full_attention": write_rope(config.rope),
            "sliding_attention": write_rope(window_rope),
        },
    }


FAMILY = Family("gemma3", NAME, config_from_hf, config_to_hf, TENSORS, LAYER_TENSORS)
