"""What a GGUF file of the ``llama`` architecture means in Hugging Face terms.

llama.cpp rotates pairs (2i, 2i + 1) where Hugging Face checkpoints rotate pairs
(i, i + h/2), so its converter permutes the rows of the query and key projections.
:func:`unpermute` puts them back: loaded as they lie, they would give fluent nonsense
and no error.
"""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from tsi.errors import CheckpointError
from tsi.models.gguf import Header, read_header, read_tensor
from tsi.models.safetensors import StoredTensor

SUPPORTED_ARCHITECTURES = ("llama",)
ROPE_FACTORS = "rope_freqs.weight"

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)")


def unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Bring query or key rows from llama.cpp's pair order to the half-split order.

    Args:
        rows: ``[heads * h, ...]`` as llama.cpp stores them: (i, half) within a head.
        num_heads: query heads for the query projection, key-value heads for the key.
    """
    split = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Read a GGUF file as the fields of a ``config.json`` and named tensors.

    Raises:
        CheckpointError: the file is damaged, of another architecture, or uses a
            feature that the Llama port does not have.
    """
    header = read_header(path)
    fields = config_fields(header)
    tensors = {}
    for name, info in header.tensors.items():
        if name == ROPE_FACTORS:
            continue
        block = _BLOCK.fullmatch(name)
        if block and block[2] in _BLOCK_NAMES:
            target = f"model.layers.{block[1]}.{_BLOCK_NAMES[block[2]]}"
        else:
            # Unknown names go on unchanged and are reported with the other misfits.
            target = _NAMES.get(name, f"{name} (GGUF)")
        read = functools.partial(read_tensor, header, name)
        for part, heads in (("q", "attention"), ("k", "key_value")):
            if target.endswith(f"self_attn.{part}_proj.weight"):
                count = fields[f"num_{heads}_heads"]
                read = functools.partial(_read_permuted, header, name, count)
        tensors[target] = StoredTensor(info.shape, read)
    return fields, tensors


def _read_permuted(header: Header, name: str, num_heads: int) -> np.ndarray:
    return unpermute(read_tensor(header, name), num_heads)


def config_fields(header: Header) -> dict[str, Any]:
    """Express a GGUF file's metadata as the fields of a Hugging Face ``config.json``.

    Raises:
        CheckpointError: a field is missing, of the wrong type, or asks for a feature
            that the Llama port does not have.
    """
    metadata, path = header.metadata, header.path
    architecture = metadata.get("general.architecture")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise CheckpointError(
            f"{path} holds the architecture {architecture!r}. Supported in GGUF: "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}."
        )

    def number(name: str, kind: type, default: Any = None) -> Any:
        value = metadata.get(f"llama.{name}", default)
        if type(value) is not kind:
            raise CheckpointError(
                f"{path}: the metadata field llama.{name} is {value!r}; the Llama port "
                f"needs one {kind.__name__}."
            )
        return value

    width, heads = number("embedding_length", int), number("attention.head_count", int)
    kv_heads = number("attention.head_count_kv", int, heads)
    if min(width, heads, kv_heads) < 1:
        raise CheckpointError(f"{path}: the model has no width or no heads.")
    head_width = number("attention.key_length", int, width // heads)
    required = {
        "attention.value_length": head_width,
        "rope.dimension_count": head_width,
        "expert_count": 0,
        "rope.scaling.type": "none",
    }
    for name, needed in required.items():
        value = metadata.get(f"llama.{name}", needed)
        if value != needed:
            raise CheckpointError(
                f"{path}: the model has llama.{name} = {value!r}, which the Llama port "
                f"does not do (it does {needed!r}); choose another model."
            )
    embedding = header.tensors.get("token_embd.weight")
    words = metadata.get("tokenizer.ggml.tokens")
    num_words = len(words) if isinstance(words, list) else 0
    if embedding is None and num_words == 0:
        raise CheckpointError(f"{path} has no tensor token_embd.weight.")
    base = number("rope.freq_base", float, 10_000.0)
    eos = [
        metadata[f"tokenizer.ggml.{name}_token_id"]
        for name in ("eos", "eot")
        if f"tokenizer.ggml.{name}_token_id" in metadata
    ]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        # Without an embedding the loader lists it with all that is missing.
        "vocab_size": embedding.shape[0] if embedding else num_words,
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length", int),
        "num_hidden_layers": number("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "max_position_embeddings": number("context_length", int),
        "rope_parameters": _rope(header, base, head_width),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "eos_token_id": list(dict.fromkeys(eos)),
    }


def _rope(header: Header, base: float, head_width: int) -> dict[str, Any]:
    """Recover Llama 3's frequency scaling from the factors that llama.cpp stores.

    The converter keeps, per frequency, the number that divides it, and drops the four
    constants they came from. All Llama 3 releases share three of them; the fourth,
    the factor, is the largest entry. Other factors are refused.
    """
    plain = {"rope_type": "default", "rope_theta": base}
    if ROPE_FACTORS not in header.tensors:
        return plain
    stored = header.tensors[ROPE_FACTORS]
    if stored.shape == (head_width // 2,):
        factors = read_tensor(header, ROPE_FACTORS)
        factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
        exponents = np.arange(0, head_width, 2) / head_width
        turns = original * base**-exponents / (2 * np.pi)
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        with np.errstate(all="ignore"):
            expected = 1.0 / (keep + (1.0 - keep) / factor)
        if np.allclose(factors, expected, rtol=1e-3):
            return plain | {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise CheckpointError(
        f"{header.path}: the tensor {ROPE_FACTORS} scales rotary frequencies in a way "
        "that is not Llama 3's, which the Llama port does not do."
    )
