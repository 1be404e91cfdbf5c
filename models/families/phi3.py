"""The Phi-3 family, which Phi-4 and Phi-4-mini are of: Llama's blocks, fused on disk.

Queries, keys and values are one tensor in the checkpoint, gate and up another; part of
each head may be left unturned. A model with LongRoPE has two sets of angles, and is
used at its original length unless a longer context is asked for when it is loaded.

References: Abdin et al. 2024, arXiv 2404.14219; LongRoPE, arXiv 2402.13753.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tsi.models.decoder_config import DecoderConfig, Local
from tsi.models.families.config_fields import (
    common,
    common_to_hf,
    refuse,
    rope_of,
    window_of,
)
from tsi.models.families.family import Arrays, Family, Tensors
from tsi.models.rotary import LongRopeScaling
from tsi.models.tensors.safetensors import StoredTensor, rows_of

NAME = "Phi3"
DEFAULTS: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32_000,
}
"""Of a configuration that does not say."""
PARTS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
_FUSED = re.compile(r"(.*)\.(self_attn\.qkv_proj|mlp\.gate_up_proj)\.weight")


def config_from_hf(fields: Mapping[str, Any]) -> DecoderConfig:
    """Read the fields of a ``config.json``.

    Raises:
        CheckpointError: one asks for a feature that the port does not have.
    """
    refuse(fields, NAME, ("sliding_window", "partial_rotary_factor"))
    fields = DEFAULTS | dict(fields)
    rope = rope_of(fields, NAME, ("longrope",), partial=True)
    shape = common(fields, "phi3", rope)
    window = window_of(fields)
    local = Local(window, (True,) * shape["num_layers"], rope) if window else None
    return DecoderConfig(**shape, local=local)


def config_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a ``config.json``, which transformers reads too."""
    window = config.local.window if config.local is not None else None
    scaling = config.rope.scaling
    original = config.max_length
    if isinstance(scaling, LongRopeScaling):
        original = scaling.original
    return common_to_hf(config, "phi3") | {
        "sliding_window": window,
        "partial_rotary_factor": config.rope.fraction,
        # Left out, it is 4096 to transformers, whatever the rotary parameters say.
        "original_max_position_embeddings": original,
        # Left out, it is 32000, which a smaller vocabulary does not have.
        "pad_token_id": None,
    }


def unfuse(config: DecoderConfig, tensors: Tensors) -> Tensors:
    """Name the parts of the fused tensors as other families do, without reading them.

    A tensor that has not the rows of its parts goes on as it is and is reported as one
    that does not belong.
    """
    kv = config.num_kv_heads * config.head_width
    counts = {
        "self_attn.qkv_proj": (config.num_heads * config.head_width, kv, kv),
        "mlp.gate_up_proj": (config.hidden, config.hidden),
    }
    split: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        fused = _FUSED.fullmatch(name)
        rows = counts[fused[2]] if fused else ()
        if fused is None or tensor.shape[:1] != (sum(rows),):
            split[name] = tensor
            continue
        start = 0
        for part, count in zip(PARTS[fused[2]], rows, strict=True):
            split[f"{fused[1]}.{part}.weight"] = rows_of(tensor, start, start + count)
            start += count
    return split


def fuse(arrays: Arrays) -> Arrays:
    """Join what :func:`unfuse` parts."""
    fused: Arrays = {}
    for name, array in arrays.items():
        for whole, parts in PARTS.items():
            if parts[0] in name:
                others = [arrays[name.replace(parts[0], part)] for part in parts]
                fused[name.replace(parts[0], whole)] = np.concatenate(others)
        if not any(part in name for parts in PARTS.values() for part in parts):
            fused[name] = array
    return fused


FAMILY = Family("phi3", NAME, config_from_hf, config_to_hf, unfuse=unfuse, fuse=fuse)
