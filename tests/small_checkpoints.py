"""Small random models, tokenizers and GGUF files for the tests of the loader."""

import json
from pathlib import Path

import gguf
import jax
import numpy as np
import tokenizers
from flax import nnx
from gguf.quants import quantize
from safetensors.numpy import load_file
from tokenizers import AddedToken, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models

from tsi.models import checkpoint
from tsi.models.decoder import DecoderConfig, LanguageModel, RewardModel
from tsi.models.tokenizer import Tokenizer

# Combining marks, joiners, surrogate-pair emoji, right-to-left, odd spaces, controls.
NASTY = (
    "naïve cafe\u0301 Å\u030a ﬁn\n",
    "👩\u200d👩\u200d👧 🏴\U000e0067\U000e007f 𝔘𝔫𝔦",
    " \t\r\n\n  tabs\u00a0and\u3000spaces \u2028\u2029 x",
    "١٢٣ ½ Ⅷ 12345 १२",
    "שלום עולם \u202eabc\u202c",
    "日本語と한국어 ไทย",
    "'s 'LL don't I'M",
    "\x00\x01\x7f\u0085\ufeff\uffff\U0010ffff",
    "",
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def small_config(**changes) -> DecoderConfig:
    fields = {
        "vocab_size": 40,
        "width": 32,
        "hidden": 48,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_width": 8,
        "max_length": 64,
        "eos_ids": (1,),
    }
    return DecoderConfig(**(fields | changes))


def small_model(config: DecoderConfig, *, reward: bool = False, seed: int = 0):
    """A model whose norms and bias are random too, so that a mix-up of two shows."""
    kind = RewardModel if reward else LanguageModel
    model = kind(config, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(seed)
    leaves = [
        leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32) for leaf in leaves
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


def parameters(model) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, k)): np.asarray(v[...]) for k, v in flat}


def logits(model, tokens) -> np.ndarray:
    return np.asarray(jax.jit(lambda m, t: m(t))(model, tokens))


def bpe_tokenizer(*, vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE with single digits (the ``smollm`` rule), trained on the spot."""
    backend = tokenizers.Tokenizer(token_models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(s, special=True, normalized=False) for s in SPECIALS
        ],
    )
    text = [*NASTY, "the sum of 12 and 30 is 42", "What is 3 + 4? user assistant"] * 5
    backend.train_from_iterator(text, trainer)
    return Tokenizer(backend, bos_id=0, eos_ids=[2], chat_template=TEMPLATE)


def permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    split = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    folder: Path,
    config: DecoderConfig,
    *,
    quantisation: gguf.GGMLQuantizationType | None = None,
    tokenizer: Tokenizer | None = None,
    pre: str = "smollm",
    drop: tuple[str, ...] = (),
    fields: dict[str, object] | None = None,
    rope_factors: np.ndarray | None = None,
) -> None:
    """Convert a saved folder to GGUF as llama.cpp's converter would."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_rope_dimension_count(config.head_width)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    for key, value in (fields or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    if tokenizer is None:
        writer.add_eos_token_id(config.eos_ids[0])
    else:
        _add_tokenizer(writer, tokenizer, pre)
    kinds = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    for name, value in load_file(folder / "model.safetensors").items():
        target = name.replace("model.layers.", "blk.")
        for old, new in kinds.items():
            target = target.replace(old, new)
        if "attn_q" in target:
            value = permute(value, config.num_heads)
        if "attn_k" in target:
            value = permute(value, config.num_kv_heads)
        if target in drop:
            continue
        value = np.ascontiguousarray(value, np.float32)
        if quantisation is not None and value.ndim == 2:
            packed = quantize(value, quantisation)
            writer.add_tensor(target, packed, raw_dtype=quantisation)
        else:
            writer.add_tensor(target, value)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:

    model = json.loads(tokenizer.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = set(tokenizer.special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in special else 1 for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


def saved(folder: Path, config: DecoderConfig, **kwargs) -> Path:
    """A folder with a small model, and the model's parameters in it."""
    checkpoint.save(small_model(config, **kwargs), config, folder)
    return folder
