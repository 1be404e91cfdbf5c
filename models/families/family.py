"""What a family says of itself: configuration, tensor names, fused tensors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tsi.models.decoder_config import DecoderConfig
from tsi.models.tensors.safetensors import StoredTensor

BLOCK = "model.layers.N."

# Checkpoint name, with N for the layer, and the module path it fills. Matrices are
# stored [out, in] and kept as kernels [in, out].
NAMES: dict[str, str] = {
    "model.embed_tokens.weight": "trunk.embedding",
    BLOCK + "input_layernorm.weight": "trunk.blocks.attention_norm.scale",
    BLOCK + "self_attn.q_proj.weight": "trunk.blocks.attention.query.kernel",
    BLOCK + "self_attn.k_proj.weight": "trunk.blocks.attention.key.kernel",
    BLOCK + "self_attn.v_proj.weight": "trunk.blocks.attention.value.kernel",
    BLOCK + "self_attn.q_proj.bias": "trunk.blocks.attention.query.bias",
    BLOCK + "self_attn.k_proj.bias": "trunk.blocks.attention.key.bias",
    BLOCK + "self_attn.v_proj.bias": "trunk.blocks.attention.value.bias",
    BLOCK + "self_attn.q_norm.weight": "trunk.blocks.attention.query_norm.scale",
    BLOCK + "self_attn.k_norm.weight": "trunk.blocks.attention.key_norm.scale",
    BLOCK + "self_attn.o_proj.weight": "trunk.blocks.attention.out.kernel",
    BLOCK + "self_attn.o_proj.bias": "trunk.blocks.attention.out.bias",
    BLOCK + "post_attention_layernorm.weight": "trunk.blocks.feed_forward_norm.scale",
    BLOCK + "mlp.gate_proj.weight": "trunk.blocks.feed_forward.gate.kernel",
    BLOCK + "mlp.up_proj.weight": "trunk.blocks.feed_forward.up.kernel",
    BLOCK + "mlp.down_proj.weight": "trunk.blocks.feed_forward.down.kernel",
    BLOCK + "mlp.gate_proj.bias": "trunk.blocks.feed_forward.gate.bias",
    BLOCK + "mlp.up_proj.bias": "trunk.blocks.feed_forward.up.bias",
    BLOCK + "mlp.down_proj.bias": "trunk.blocks.feed_forward.down.bias",
    "model.norm.weight": "trunk.norm.scale",
    "lm_head.weight": "head.kernel",
    "score.weight": "score.kernel",
    "score.bias": "bias",
    "score.0.weight": "inner.kernel",
    "score.0.bias": "inner.bias",
    "score.2.weight": "outer.kernel",
    "score.2.bias": "outer.bias",
    "v_head.summary.weight": "value.summary.kernel",
    "v_head.summary.bias": "value.summary.bias",
}

Tensors = Mapping[str, StoredTensor]


Arrays = dict[str, np.ndarray]


def as_they_are(arrays: Arrays) -> Arrays:
    """The arrays as they are."""
    return arrays


def nothing_fused(config: DecoderConfig, tensors: Tensors) -> Tensors:
    """The tensors as they are."""
    return tensors


class Family(NamedTuple):
    """One family of models.

    Attributes:
        name: as configurations and messages call it.
        prefix: of its architectures in a config.json, before ForCausalLM.
        read: from the fields of a config.json to a configuration; refuses by name.
        write: the other way, but for the architecture.
        names: checkpoint names and module paths; those a model lacks are not asked for.
        unfuse: gives tensors that a checkpoint fuses under the names above.
        fuse: the other way, for saving.
    """

    name: str
    prefix: str
    read: Callable[[Mapping[str, Any]], DecoderConfig]
    write: Callable[[DecoderConfig], dict[str, Any]]
    names: Mapping[str, str] = NAMES
    unfuse: Callable[[DecoderConfig, Tensors], Tensors] = nothing_fused
    fuse: Callable[[Arrays], Arrays] = as_they_are
