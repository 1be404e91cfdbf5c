"""The tensors of a GGUF file under their Hugging Face names, with conversions undone.

For some architectures llama.cpp rotates pairs (2i, 2i + 1) where Hugging Face
checkpoints rotate pairs (i, i + h/2), so its converter permutes the rows of queries and
keys. :func:`unpermute` restores their order; without it the model would write fluent
nonsense and raise no error. For Gemma 3 the converter adds one to the scales of norms.
It is subtracted here, so that parameters are those of the safetensors release.

Source: llama.cpp's converter (conversion/llama.py, gemma.py) and its table of rope
types in src/llama-model.cpp.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsi.errors import CheckpointError
from tsi.models.gguf.config import config_fields
from tsi.models.gguf.file import Header, TensorReader, read_header
from tsi.models.gguf.rope import FACTOR_TENSORS
from tsi.models.tensors.safetensors import StoredTensor, rows_of

PERMUTED_ARCHITECTURES = ("llama", "mistral3")

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_NAMES_OF = {
    "gemma3": _BLOCK_NAMES | _GEMMA3,
    "phi3": _BLOCK_NAMES | _PHI3,
}
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(\w+)\.(weight|bias)")


def unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder query or key rows from llama.cpp's order of pairs to the half-split one.

    Args:
        rows: ``[heads * h, ...]``, of which llama.cpp stores a head as (i, half).
        num_heads: query heads for the query projection, key-value heads for the key.
    """
    split = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Read a GGUF file as the fields of a ``config.json`` and named tensors.

    Raises:
        CheckpointError: the file is damaged, is a part of a model, is of another
            architecture, or asks for a feature that the port does not support.
    """
    header = read_header(path)
    parts = header.metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise CheckpointError(
            f"{path} is one of {parts} parts of a model, which are not supported. Join "
            "them with llama.cpp's llama-gguf-split --merge."
        )
    fields = config_fields(header)
    return fields, dict(_tensors(header, fields))


def _tensors(
    header: Header, fields: dict[str, Any]
) -> Iterator[tuple[str, StoredTensor]]:
    architecture = header.metadata["general.architecture"]
    names = _NAMES_OF.get(architecture, _BLOCK_NAMES)
    counts = {
        "attn_q": fields["num_attention_heads"],
        "attn_k": fields["num_key_value_heads"],
    }
    for name, tensor in _parts(header, fields, fused="attn_qkv" in names):
        block = _BLOCK.fullmatch(name)
        stem, _, end = name.rpartition(".")
        if block and block[2] in names:
            target = f"model.layers.{block[1]}.{names[block[2]]}.{block[3]}"
        elif stem in _NAMES:
            target = f"{_NAMES[stem]}.{end}"
        else:
            # The loader reports unknown names with the other misfits.
            target = f"{name} (GGUF)"
        read = tensor.read
        if architecture in PERMUTED_ARCHITECTURES and block and block[2] in counts:
            read = _compose(read, unpermute, counts[block[2]])
        if architecture == "gemma3" and stem.endswith("norm"):
            read = _compose(read, np.subtract, np.float32(1))
        yield target, tensor._replace(read=read)


def _parts(
    header: Header, fields: dict[str, Any], *, fused: bool
) -> Iterator[tuple[str, StoredTensor]]:
    """The file's tensors, with queries, keys and values apart unless ``fused``.

    The converter fuses them for any architecture on request (``--fuse-qkv``).
    """
    kv_rows = fields["num_key_value_heads"] * fields["head_dim"]
    rows = (fields["num_attention_heads"] * fields["head_dim"], kv_rows, kv_rows)
    for name, info in header.tensors.items():
        if name in FACTOR_TENSORS:
            continue
        tensor = StoredTensor(info.shape, header.path, TensorReader(header, name))
        if fused or ".attn_qkv." not in name or info.shape[0] != sum(rows):
            yield name, tensor
            continue
        start = 0
        for part, count in zip("qkv", rows, strict=True):
            target = name.replace("attn_qkv", f"attn_{part}")
            yield target, rows_of(tensor, start, start + count)
            start += count


def _compose(
    read: Callable[[], np.ndarray], change: Callable[..., np.ndarray], *arguments: Any
) -> Callable[[], np.ndarray]:
    return lambda: change(read(), *arguments)
