"""The text model of Gemma 3: windows in five layers of six, norms on both sides.

Scales are stored as their difference from one, embeddings are multiplied by the root of
the width, queries and keys are normalised, and layers with a window have a rotary base
of their own. Scores and logits are capped where the configuration asks for it; released
configurations do not, and transformers 5 reads the cap of scores and does not apply it.

Reference: Gemma Team 2025, arXiv 2503.19786.
"""

from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.decoder_config import DecoderConfig, Local
from tsi.models.families.config_fields import (
    biases,
    biases_to_hf,
    common,
    common_to_hf,
    positive,
    refuse,
    rope_of,
    rope_to_hf,
    table,
)
from tsi.models.families.family import BLOCK, NAMES, Family
from tsi.models.families.windows import layer_types, layers_from_types
from tsi.models.rotary import Rope

NAME = "Gemma3"
THETA, LOCAL_THETA = 1_000_000.0, 10_000.0
KINDS = ("linear", "llama3", "yarn", "dynamic")
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
"""Released configurations leave out what equals these."""
DOES = (
    "attention_bias",
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
GEMMA_NAMES = NAMES | {
    BLOCK + "post_attention_layernorm.weight": "trunk.blocks.attention_post_norm.scale",
    BLOCK + "pre_feedforward_layernorm.weight": "trunk.blocks.feed_forward_norm.scale",
    BLOCK
    + "post_feedforward_layernorm.weight": "trunk.blocks.feed_forward_post_norm.scale",
}


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """Read the fields of a text model's ``config.json``.

    Raises:
        CheckpointError: one asks for a feature that the port does not have.
    """
    refuse(fields, NAME, DOES)
    fields = DEFAULTS | dict(fields)
    everywhere, local_rope = _ropes(fields)
    shape = common(fields, "gemma3", everywhere)
    kinds = fields.get("layer_types")
    if kinds is None:
        period = fields["sliding_window_pattern"]
        if type(period) is not int or period < 1:
            raise CheckpointError(
                f"config.json has sliding_window_pattern={period!r}, which is not "
                "a number of layers. Correct it, or choose another checkpoint."
            )
        layers = tuple((i + 1) % period != 0 for i in range(shape["num_layers"]))
    else:
        layers = layers_from_types(kinds, NAME, shape["num_layers"])
    local = Local(fields["sliding_window"], layers, local_rope)
    return DecoderConfig(
        **shape,
        **biases(fields),
        query_key_norm=True,
        post_norms=True,
        norm_offset=1.0,
        embedding_scale=shape["width"] ** 0.5,
        query_scale=positive(fields, "query_pre_attn_scalar", None) ** -0.5,
        attention_softcap=_cap(fields, "attn_logit_softcapping"),
        logit_softcap=_cap(fields, "final_logit_softcapping"),
        local=local if any(layers) else None,
    )


def _cap(fields: Mapping[str, Any], name: str) -> float | None:
    return None if fields.get(name) is None else positive(fields, name, None)


def _ropes(fields: Mapping[str, Any]) -> tuple[Rope, Rope]:
    """Of layers that see everything, and of those with a window.

    Raises:
        CheckpointError: another kind of scaling, or YaRN without its rounding.
    """
    both = table(fields, "rope_parameters")
    if "full_attention" in both or "sliding_attention" in both:
        everywhere = table(both, "full_attention")
        local = table(both, "sliding_attention")
    else:
        everywhere = both or table(fields, "rope_scaling")
        local = {"rope_theta": fields.get("rope_local_base_freq", LOCAL_THETA)}
    if not all(rope.get("truncate", True) for rope in (everywhere, local)):
        # transformers reads it beside the kinds of layers and not among theirs.
        raise CheckpointError(
            "config.json asks for truncate=false in YaRN's parameters of a kind of "
            f"layers, which transformers passes over and the {NAME} port does not do; "
            "leave it out, or choose another checkpoint."
        )
    length = {"max_position_embeddings": fields["max_position_embeddings"]}
    return (
        rope_of(fields, NAME, KINDS, THETA, everywhere),
        rope_of(length, NAME, KINDS, LOCAL_THETA, local),
    )


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a text model's ``config.json``, which transformers reads too.

    Raises:
        CheckpointError: a bias in a part of the attention only.
    """
    fields = common_to_hf(config, "gemma3_text") | biases_to_hf(config)
    local = config.local
    scale = config.query_scale or config.head_width**-0.5
    return fields | {
        "hidden_activation": config.activation,
        "query_pre_attn_scalar": round(scale**-2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": local.window if local is not None else 4096,
        "layer_types": layer_types(config),
        "rope_parameters": {
            "full_attention": rope_to_hf(config.rope),
            "sliding_attention": rope_to_hf(local.rope if local else Rope(LOCAL_THETA)),
        },
    }


FAMILY = Family("gemma3", NAME, config_from_hf, config_to_hf, GEMMA_NAMES)
