"""Phi-3, Phi-4 and Phi-4-mini: Llama's block, with fused matrices in the checkpoint.

=================  =================================================================
norms              RMSNorm before the attention, before the feed-forward layer and
                   after the last block
query, key norm    none
attention          grouped queries, without biases
rotary embedding   the first ``partial_rotary_factor`` of each head, base
                   ``rope_theta``; LongRoPE or no scaling. LongRoPE has two sets of
                   wavelengths; a model is used at its original length, unless it is
                   loaded with a longer context
sliding window     ``sliding_window`` positions in every layer; none if null
feed-forward       down(silu(gate(x)) * up(x)), without biases
vocabulary head    ``lm_head``; the embedding where ``tie_word_embeddings`` is true
                   (Phi-4-mini)
checkpoint         the rows of ``self_attn.qkv_proj`` are those of queries, keys and
                   values; the rows of ``mlp.gate_up_proj`` those of gate and up
=================  =================================================================

References: Abdin et al. 2024, arXiv 2404.14219; LongRoPE, arXiv 2402.13753.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tsi.models.decoder_config import DecoderConfig
from tsi.models.families.config_fields import (
    read_activation,
    read_eos_ids,
    read_max_length,
    read_norm_epsilon,
    read_sizes,
    write_fields,
)
from tsi.models.families.family import Arrays, Family, Tensors
from tsi.models.families.features import refuse_features
from tsi.models.families.rope_fields import read_rope
from tsi.models.families.values import read_flag
from tsi.models.families.windows import window_in_every_layer
from tsi.models.rotary import LongRopeScaling
from tsi.models.tensors.safetensors import StoredTensor, rows_of

NAME = "Phi3"
FEATURES = ("sliding_window", "partial_rotary_factor")
"""Fields that are read here and that other families refuse."""
ROPE_SCALINGS = ("longrope",)
DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32_000,
}
"""Fields that config.json may leave out."""

FUSED_TENSORS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Matrices of the checkpoint, and the names of their parts in LAYER_TENSORS."""
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
_FUSED_NAME = re.compile(r"(.*)\.(self_attn\.qkv_proj|mlp\.gate_up_proj)\.weight")


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """The configuration that the fields of a ``config.json`` describe.

    Raises:
        CheckpointError: a field asks for a feature that this port does not support.
    """
    refuse_features(fields, NAME, FEATURES)
    fields = DEFAULTS | dict(fields)
    rope = read_rope(fields, NAME, ROPE_SCALINGS, partial=True)
    return DecoderConfig(
        **read_sizes(fields),
        family="phi3",
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
    scaling = config.rope.scaling
    original = config.max_length
    if isinstance(scaling, LongRopeScaling):
        original = scaling.original
    return write_fields(config, "phi3") | {
        "sliding_window": window,
        "partial_rotary_factor": config.rope.fraction,
        # transformers takes an absent field as 4096, whatever rope_parameters say.
        "original_max_position_embeddings": original,
        # transformers takes an absent field as 32000, beyond a small vocabulary.
        "pad_token_id": None,
    }


def unfuse(config: DecoderConfig, tensors: Tensors) -> Tensors:
    """Split the fused tensors into their parts, without reading them.

    A tensor whose number of rows is not that of its parts keeps its name, and the
    loader reports it as one that does not belong to the model.
    """
    kv_rows = config.num_kv_heads * config.head_width
    row_counts = {
        "self_attn.qkv_proj": (config.num_heads * config.head_width, kv_rows, kv_rows),
        "mlp.gate_up_proj": (config.hidden, config.hidden),
    }
    parts: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        match = _FUSED_NAME.fullmatch(name)
        counts = row_counts[match[2]] if match else ()
        if match is None or tensor.shape[:1] != (sum(counts),):
            parts[name] = tensor
            continue
        start = 0
        for part, count in zip(FUSED_TENSORS[match[2]], counts, strict=True):
            parts[f"{match[1]}.{part}.weight"] = rows_of(tensor, start, start + count)
            start += count
    return parts


def fuse(arrays: Arrays) -> Arrays:
    """Join the parts that :func:`unfuse` splits."""
    joined: Arrays = {}
    for name, array in arrays.items():
        for fused, parts in FUSED_TENSORS.items():
            if parts[0] in name:
                rows = [arrays[name.replace(parts[0], part)] for part in parts]
                joined[name.replace(parts[0], fused)] = np.concatenate(rows)
        if not any(part in name for parts in FUSED_TENSORS.values() for part in parts):
            joined[name] = array
    return joined


FAMILY = Family(
    "phi3",
    NAME,
    config_from_hf,
    config_to_hf,
    TENSORS,
    LAYER_TENSORS,
    unfuse=unfuse,
    fuse=fuse,
)
