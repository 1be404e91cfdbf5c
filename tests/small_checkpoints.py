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
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as token_models

from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.loading import checkpoint
from tsi.models.rotary import LinearScaling, LongRopeScaling, YarnScaling
from tsi.models.tokens.tokenizer import Tokenizer

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
CORPUS = [*NASTY, "the sum of 12 and 30 is 42", "What is 3 + 4? user assistant"] * 5
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
    backend.train_from_iterator(CORPUS, trainer)
    return Tokenizer(backend, bos_id=0, eos_ids=[2], chat_template=TEMPLATE)


def permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    split = rows.reshape(num_heads, 2, -1, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


ARCHITECTURES = {"mistral": "llama"}
"""GGUF architecture of a family, where it has another name."""


def write_gguf(
    path: Path,
    folder: Path,
    config: DecoderConfig,
    *,
    architecture: str | None = None,
    quantisation: gguf.GGMLQuantizationType | None = None,
    tokenizer: Tokenizer | None = None,
    pre: str = "smollm",
    drop: tuple[str, ...] = (),
    fields: dict[str, object] | None = None,
    rope_factors: np.ndarray | None = None,
    fuse: bool = False,
) -> None:
    """Convert a saved folder to GGUF as llama.cpp's converter would.

    Args:
        fuse: whether queries, keys and values are joined (its ``--fuse-qkv``).
    """
    name = architecture or ARCHITECTURES.get(config.family, config.family)
    writer = gguf.GGUFWriter(path, name)
    _add_sizes(writer, config)
    for key, value in (fields or {}).items():
        kind = gguf.GGUFValueType.get_type(value)
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else kind
        writer.add_key_value(key, value, kind)
    if tokenizer is None:
        writer.add_eos_token_id(config.eos_ids[0])
    else:
        _add_tokenizer(writer, tokenizer, pre)
    tensors = _converted(folder, config, name)
    if fuse:
        tensors = _fused(tensors, config.num_layers)
    for target, value in tensors.items():
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
    if isinstance(config.rope.scaling, LongRopeScaling):
        for half in ("long", "short"):
            divisors = np.array(getattr(config.rope.scaling, half), np.float32)
            writer.add_tensor(f"rope_factors_{half}.weight", divisors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, config: DecoderConfig) -> None:
    family, rope = config.family, config.rope
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.trained_length)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    if family != "phi3":
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
    if family in ("llama", "mistral"):
        writer.add_vocab_size(config.vocab_size)
    if family in ("llama", "mistral", "phi3"):
        writer.add_rope_dimension_count(int(rope.fraction * config.head_width))
    if family == "phi3":
        scaling = rope.scaling
        stretched = isinstance(scaling, LongRopeScaling)
        original = scaling.original if stretched else config.max_length
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_sliding_window(
            config.sliding_window.size if config.sliding_window else 0
        )
    if family == "gemma3" and config.sliding_window:
        writer.add_sliding_window(config.sliding_window.size)
        writer.add_rope_freq_base_swa(config.sliding_window.rope.theta)
    if config.logit_softcap is not None:
        writer.add_final_logit_softcapping(config.logit_softcap)
    if isinstance(rope.scaling, LinearScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.scaling.factor)
    if isinstance(rope.scaling, YarnScaling):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(int(rope.scaling.original))
        writer.add_rope_scaling_yarn_attn_factor(rope.scaling.attention)
        writer.add_rope_scaling_yarn_beta_fast(rope.scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rope.scaling.beta_slow)
    if isinstance(rope.scaling, LongRopeScaling):
        writer.add_rope_scaling_attn_factors(rope.scaling.attention)


def _converted(
    folder: Path, config: DecoderConfig, architecture: str
) -> dict[str, np.ndarray]:
    kind = next(k for k, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_layers)
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        target = names.get_name(name, (".weight", ".bias"))
        if architecture in ("llama", "mistral3") and "attn_q." in target:
            value = permute(value, config.num_heads)
        if architecture in ("llama", "mistral3") and "attn_k." in target:
            value = permute(value, config.num_kv_heads)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        tensors[target] = value
    return tensors


def _fused(tensors: dict[str, np.ndarray], num_layers: int) -> dict[str, np.ndarray]:
    for layer in range(num_layers):
        for kind in ("weight", "bias"):
            parts = [f"blk.{layer}.attn_{part}.{kind}" for part in "qkv"]
            if parts[0] in tensors:
                joined = np.concatenate([tensors.pop(part) for part in parts])
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = joined
    return tensors


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:
    model = json.loads(tokenizer.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = set(tokenizer.special_ids)
    _add_vocabulary(
        writer,
        {
            "model": "gpt2",
            "pre": pre,
            "tokens": tokens,
            "token_type": [3 if t in special else 1 for t in tokens],
            "merges": [" ".join(pair) for pair in model["merges"]],
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
    )
    writer.add_chat_template(TEMPLATE)


def _add_vocabulary(writer: gguf.GGUFWriter, fields: dict[str, object]) -> None:
    for name, value in fields.items():
        kind = gguf.GGUFValueType.get_type(value)
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else kind
        writer.add_key_value(f"tokenizer.ggml.{name}", value, kind)


def write_vocabulary(path: Path, architecture: str, fields: dict[str, object]) -> Path:
    """A GGUF file that has a tokenizer and no weights; the fields of tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, architecture)
    _add_vocabulary(writer, fields)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sentencepiece_fields(extra: dict[str, int] | None = None) -> dict[str, object]:
    """A SentencePiece vocabulary trained on the spot, as Llama 2's is laid out.

    Control tokens, bytes, pieces in the order they were merged, characters.

    Args:
        extra: further tokens and their kinds, after the control tokens.
    """
    backend = tokenizers.Tokenizer(token_models.BPE())
    backend.normalizer = normalizers.Replace(" ", "▁")
    words = pre_tokenizers.Split("▁", "merged_with_next")
    backend.pre_tokenizer = words
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    backend.train_from_iterator([f" {text}" for text in CORPUS], trainer)
    vocabulary = backend.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    pieces.sort(key=lambda piece: len(piece) == 1)
    named = {"<unk>": 2, "<s>": 3, "</s>": 3} | (extra or {})
    pieces = [p for p in pieces if not {p, p.replace("▁", " ")} & named.keys()]
    # llama.cpp's text ends at a zero byte.
    pieces = [piece for piece in pieces if "\0" not in piece]
    octets = [f"<0x{byte:02X}>" for byte in range(256)]
    first = len(named) + len(octets)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [*named, *octets, *pieces],
        "token_type": [*named.values()] + [6] * 256 + [1] * len(pieces),
        "scores": [0.0] * first + [-float(i) for i in range(len(pieces))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def saved(folder: Path, config: DecoderConfig, **kwargs) -> Path:
    """A folder with a small model, and the model's parameters in it."""
    checkpoint.save(small_model(config, **kwargs), config, folder)
    return folder
