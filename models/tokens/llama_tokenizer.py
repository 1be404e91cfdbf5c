"""What transformers makes of a tokenizer.json whose class is LlamaTokenizer.

Such files were converted from SentencePiece models when transformers put the space that
SentencePiece starts a text with before every piece between control tokens. Since its
version 5 it takes only the vocabulary and the merges from them and puts the space as
``legacy`` and ``add_prefix_space`` of tokenizer_config.json say: by default once, at
the beginning, and not if the text begins with a space. TinyLlama and Llama 2 are of
this class, and their ids are here what they are there.

transformers builds other classes anew too (Qwen2Tokenizer, GemmaTokenizer), to what
their released files say as well. Here those files are read as they are: GPT2Tokenizer
would drop the rule of SmolLM2's that each digit is a token.

Source: transformers 5, models/llama/tokenization_llama.py and
models/auto/tokenization_auto.py.
"""

import json
from collections.abc import Mapping
from typing import Any

DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""The tokens of these roles where no file names one."""
AS_STORED = ("mistral", "mistral3", "phi3", "qwen2")
"""Model types whose tokenizer is not of the class, whatever tokenizer_config.json says:
transformers knows better."""


def is_rebuilt(model: Mapping[str, Any], fields: Mapping[str, Any], text: str) -> bool:
    """Whether transformers builds the tokenizer of a folder anew.

    Args:
        model: fields of config.json.
        fields: of tokenizer_config.json.
        text: tokenizer.json.
    """
    name = fields.get("tokenizer_class") or model.get("tokenizer_class")
    return (
        name in ("LlamaTokenizer", "LlamaTokenizerFast")
        and model.get("model_type") not in AS_STORED
        and '"ByteLevel"' not in text
    )


def rebuilt(fields: Mapping[str, Any], text: str) -> str:
    """The tokenizer.json that stands for what transformers builds.

    Args:
        fields: of tokenizer_config.json.
        text: the tokenizer.json of the folder, whose vocabulary and merges it has.
    """
    state = json.loads(text)
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        return text
    spaced = fields.get("add_prefix_space")
    spaced = spaced is None or bool(spaced)
    scheme = "always" if fields.get("legacy") else "first"
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if spaced:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    state["normalizer"] = None
    state["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme if spaced else "never",
        "split": False,
    }
    state["decoder"] = {"type": "Sequence", "decoders": steps}
    # The token for what is unknown stays, which there goes: what the vocabulary cannot
    # spell is then refused and not dropped.
    kept = {k: v for k, v in state["model"].items() if k in _OF_MODEL}
    state["model"] = {**kept, "fuse_unk": True, "byte_fallback": True}
    if "added_tokens_decoder" in fields:
        state["added_tokens"] = []
    return json.dumps(state)


_OF_MODEL = ("type", "vocab", "merges", "unk_token")
