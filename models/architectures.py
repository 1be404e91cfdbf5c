"""What is known of each architecture: its module, and the names of its tensors.

A port for another family adds its class, its names and its configuration reader here;
the loader and the saver need nothing else.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from tsi.errors import CheckpointError
from tsi.models.llama import Llama, LlamaConfig, RewardModel, config_from_hf

ARCHITECTURES: dict[str, type[Llama] | type[RewardModel]] = {
    "LlamaForCausalLM": Llama,
    "LlamaForTokenClassification": RewardModel,
}

# Checkpoint name, with N for the layer, and the module path it fills. Matrices are
# stored [out, in] and kept as kernels [in, out].
_BLOCK = "model.layers.N."
NAMES: dict[str, str] = {
    "model.embed_tokens.weight": "trunk.embedding",
    _BLOCK + "input_layernorm.weight": "trunk.blocks.attention_norm.scale",
    _BLOCK + "self_attn.q_proj.weight": "trunk.blocks.attention.query.kernel",
    _BLOCK + "self_attn.k_proj.weight": "trunk.blocks.attention.key.kernel",
    _BLOCK + "self_attn.v_proj.weight": "trunk.blocks.attention.value.kernel",
    _BLOCK + "self_attn.o_proj.weight": "trunk.blocks.attention.out.kernel",
    _BLOCK + "post_attention_layernorm.weight": "trunk.blocks.feed_forward_norm.scale",
    _BLOCK + "mlp.gate_proj.weight": "trunk.blocks.feed_forward.gate.kernel",
    _BLOCK + "mlp.up_proj.weight": "trunk.blocks.feed_forward.up.kernel",
    _BLOCK + "mlp.down_proj.weight": "trunk.blocks.feed_forward.down.kernel",
    "model.norm.weight": "trunk.norm.scale",
    "lm_head.weight": "head.kernel",
    "score.weight": "score.kernel",
    "score.bias": "bias",
}
# Rotary tables that old releases stored; they follow from the configuration.
DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def architecture_of(
    path: Path, fields: dict[str, Any]
) -> tuple[type[Llama] | type[RewardModel], LlamaConfig]:
    """The module class and the validated configuration that a checkpoint asks for.

    Args:
        path: the checkpoint, for messages.
        fields: of its config.json, or what a GGUF's metadata says in those terms.

    Raises:
        CheckpointError: an architecture, a feature or a size that no port here has.
    """
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} holds the architecture {name!r}. Supported: "
            f"{', '.join(ARCHITECTURES)}."
        )
    if fields.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path} is quantised (quantization_config in config.json), which is read "
            "from GGUF only; choose the unquantised checkpoint or a GGUF of it."
        )
    problems = [
        f"{size} is {value!r}, not a positive whole number under 2^31"
        for size in SIZES
        if (value := fields.get(size)) is not None
        and (type(value) is not int or not 0 < value < 2**31)
    ]
    eos = fields.get("eos_token_id")
    if not all(
        type(id) is int for id in (eos if isinstance(eos, list) else [eos or 0])
    ):
        problems.append(f"eos_token_id is {eos!r}, not one token id or a list of them")
    if not problems:
        config = _read_config(path, fields)
        problems += _contradictions(config)
    if problems:
        raise CheckpointError(f"{path}: in the configuration, {'; '.join(problems)}.")
    return ARCHITECTURES[name], config


def _read_config(path: Path, fields: dict[str, Any]) -> LlamaConfig:
    try:
        return config_from_hf(fields)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: the configuration lacks the field {error}."
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: the configuration is malformed: {error}."
        ) from None


def _contradictions(config: LlamaConfig) -> list[str]:
    problems = []
    if config.num_heads % config.num_kv_heads:
        problems.append("the query heads are not a multiple of the key-value heads")
    if config.head_width < 2 or config.head_width % 2:
        problems.append(f"the head width {config.head_width} is not even")
    scalars = (config.rope_theta, config.norm_epsilon, *(config.rope_scaling or ()))
    if not all(np.isfinite(value) and value > 0 for value in scalars):
        problems.append(f"one of {scalars} is not a positive number")
    return problems
