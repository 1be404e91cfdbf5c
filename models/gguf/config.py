"""The metadata of a GGUF file as the fields of a Hugging Face ``config.json``.

Every field of the model's own namespace is read, known to have no effect, or off. Any
other field is refused by name: a model that ignores a feature writes fluent nonsense
and raises no error. A GGUF lacks some fields of a ``config.json``. llama.cpp's
converter writes no window for Mistral, and then none is used. It need not write which
layers of Gemma 3 have a window; then they are five of six. The query scale of Gemma 3
follows from its sizes, as in llama.cpp.

Source: llama.cpp's converter (conversion/*.py) and the hyper-parameters that its
src/models/*.cpp read.
"""

from typing import Any

from tsi.errors import CheckpointError
from tsi.models.gguf.file import Header
from tsi.models.gguf.metadata import ARCHITECTURES, Metadata
from tsi.models.gguf.rope import gemma_rope, rope_fields

GEMMA_PERIOD = 6
GEMMA_27B_LAYERS = 62
# Control tokens that end a turn of a chat. Converters write one end to the metadata;
# Phi-3, Gemma 3 and Llama 3 have a second one, which llama.cpp too knows by its text.
TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")


def config_fields(header: Header) -> dict[str, Any]:
    """The fields of a Hugging Face ``config.json`` for the metadata of a GGUF file.

    Raises:
        CheckpointError: the architecture is not supported, or a field is missing, of
            the wrong type, or asks for a feature that the port does not support.
    """
    architecture = header.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{header.path} holds the architecture {architecture!r}. Supported in "
            f"GGUF: {', '.join(ARCHITECTURES)}."
        )
    metadata = Metadata(header, architecture)
    fields = _shared_fields(metadata) | _FIELDS_OF[architecture](metadata)
    fields["architectures"] = [f"{fields.pop('prefix')}ForCausalLM"]
    metadata.refuse_unread()
    return fields


def _shared_fields(metadata: Metadata) -> dict[str, Any]:
    header = metadata.header
    width = metadata.get("embedding_length", int)
    heads = metadata.get("attention.head_count", int)
    kv_heads = metadata.get("attention.head_count_kv", int, heads)
    if min(width, heads, kv_heads) < 1:
        raise CheckpointError(f"{header.path}: the model has no width or no heads.")
    layers = metadata.get("block_count", int)
    # With more layers even the list of missing tensors would be absurdly long.
    if layers > max(len(header.tensors), 1000):
        raise CheckpointError(
            f"{header.path} has {len(header.tensors)} tensors, too few for the "
            f"{layers} layers that its metadata states."
        )
    head_width = metadata.get("attention.key_length", int, width // heads)
    metadata.require("attention.value_length", head_width)
    metadata.require("attention.causal", True)
    if metadata.architecture != "phi3":
        metadata.require("rope.dimension_count", head_width)
    embedding = header.tensors.get("token_embd.weight")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    num_tokens = len(tokens) if isinstance(tokens, list) else 0
    if embedding is None and num_tokens == 0:
        raise CheckpointError(f"{header.path} has no tensor token_embd.weight.")
    return {
        "prefix": ARCHITECTURES[metadata.architecture],
        # A missing embedding is reported by the loader, with all other missing tensors.
        "vocab_size": embedding.shape[0] if embedding else num_tokens,
        "hidden_size": width,
        "intermediate_size": metadata.get("feed_forward_length", int),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_width,
        "max_position_embeddings": metadata.get("context_length", int),
        "rms_norm_eps": metadata.get("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "eos_token_id": end_ids(header.metadata),
    }


def end_ids(metadata: dict[str, Any]) -> list[int]:
    """Ids that end a solution: those of the metadata, and the ends of a chat's turn."""
    ids = [metadata.get(f"tokenizer.ggml.{n}_token_id") for n in ("eos", "eot")]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        turn_ends = {token: id for id, token in enumerate(tokens) if token in TURN_ENDS}
        ids = [id for id in ids if type(id) is not int or id < len(tokens)]
        ids += [turn_ends[token] for token in TURN_ENDS if token in turn_ends]
    return list(dict.fromkeys(id for id in ids if type(id) is int and id >= 0))


def _window(metadata: Metadata) -> int | None:
    return metadata.get("attention.sliding_window", int, 0) or None


def _llama(metadata: Metadata) -> dict[str, Any]:
    window = _window(metadata)
    fields = {"rope_parameters": rope_fields(metadata)} | _biases(metadata)
    fields["mlp_bias"] = "blk.0.ffn_down.bias" in metadata.header.tensors
    if window is None and metadata.architecture == "llama":
        return fields
    return fields | {"prefix": "Mistral", "sliding_window": window}


def _biases(metadata: Metadata) -> dict[str, Any]:
    """``attention_bias``, which no field states: the tensors are there or not."""
    names = ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias", "blk.0.attn_output.bias")
    return {"attention_bias": any(n in metadata.header.tensors for n in names)}


def _qwen2(metadata: Metadata) -> dict[str, Any]:
    return {"rope_parameters": rope_fields(metadata)}


def _qwen3(metadata: Metadata) -> dict[str, Any]:
    return {"rope_parameters": rope_fields(metadata)} | _biases(metadata)


def _phi3(metadata: Metadata) -> dict[str, Any]:
    # llama.cpp reads the window of Phi-3 and does not apply it; transformers and this
    # port apply it.
    rope = rope_fields(metadata)
    original = rope.get("original_max_position_embeddings")
    return {
        "rope_parameters": rope,
        "original_max_position_embeddings": original,
        "sliding_window": _window(metadata),
    }


def _gemma3(metadata: Metadata) -> dict[str, Any]:
    window = _window(metadata)
    layers = metadata.get("block_count", int)
    heads = metadata.get("attention.head_count", int)
    width = metadata.get("embedding_length", int)
    pattern = metadata.value("attention.sliding_window_pattern", GEMMA_PERIOD)
    if type(pattern) is int:
        pattern = [pattern == 0 or i % pattern < pattern - 1 for i in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers:
        metadata.refuse("attention.sliding_window_pattern", pattern)
    scale = width // heads if layers == GEMMA_27B_LAYERS else None
    return _biases(metadata) | {
        "query_pre_attn_scalar": scale
        or metadata.get("attention.key_length", int, width // heads),
        "final_logit_softcapping": metadata.get("final_logit_softcapping", float, 0.0)
        or None,
        "sliding_window": window,
        "layer_types": [
            "sliding_attention" if window and has_window else "full_attention"
            for has_window in pattern
        ],
        "rope_parameters": gemma_rope(metadata),
    }


_FIELDS_OF = {
    "llama": _llama,
    "mistral3": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "phi3": _phi3,
}
