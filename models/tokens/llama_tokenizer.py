"""Rebuilds a tokenizer.json whose class is LlamaTokenizer, as transformers does.

SentencePiece starts a text with a space. When these files were converted, transformers
put that space before every piece of text between control tokens. Since version 5 it
takes only the vocabulary and the merges from the file. It puts the space as ``legacy``
and ``add_prefix_space`` of tokenizer_config.json state: by default once, at the
beginning, and not if the text begins with a space. TinyLlama and Llama 2 have this
class, and their ids here equal those of transformers.

transformers rebuilds other classes too (Qwen2Tokenizer, GemmaTokenizer), with the same
result as their released files. Those files are read unchanged here, because
GPT2Tokenizer would drop SmolLM2's rule that each digit is a token.

Source: transformers 5, models/llama/tokenization_llama.py and
models/auto/tokenization_auto.py.
"""

import json
from collections.abc import Mapping
from typing import Any

DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The tokens of these roles if no file names one."""
OTHER_TYPES = ("mistral", "mistral3", "phi3", "qwen2")
"""Model types whose tokenizer is never of this class, even if tokenizer_config.json
states it; transformers has the same list."""


def is_llama_tokenizer(
    model: Mapping[str, Any], fields: Mapping[str, Any], text: str
) -> bool:
    """Whether transformers rebuilds the tokenizer of a folder as a LlamaTokenizer.

    Args:
        model: fields of config.json.
        fields: of tokenizer_config.json.
        text: tokenizer.json.
    """
    name = fields.get("tokenizer_class") or model.get("tokenizer_class")
    return (
        name in ("LlamaTokenizer", "LlamaTokenizerFast")
        and model.get("model_type") not in OTHER_TYPES
        and '"ByteLevel"' not in text
    )


def rebuild(fields: Mapping[str, Any], text: str) -> str:
    """The tokenizer.json that is equivalent to what transformers builds.

    Args:
        fields: of tokenizer_config.json.
        text: the tokenizer.json of the folder, whose vocabulary and merges are used.
    """
    state = json.loads(text)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        return text
    add_space = fields.get("add_prefix_space")
    add_space = add_space is None or bool(add_space)
    scheme = "always" if fields.get("legacy") else "first"
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if add_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    state["normalizer"] = None
    state["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme if add_space else "never",
        "split": False,
    }
    state["decoder"] = {"type": "Sequence", "decoders": steps}
    # transformers drops the unknown token. It is kept here, so that text which the
    # vocabulary cannot spell is refused and not dropped.
    model = {k: v for k, v in state["model"].items() if k in _MODEL_FIELDS}
    state["model"] = {**model, "fuse_unk": True, "byte_fallback": True}
    if "added_tokens_decoder" in fields:
        state["added_tokens"] = []
    return json.dumps(state)


_MODEL_FIELDS = ("type", "vocab", "merges", "unk_token")
