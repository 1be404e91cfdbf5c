"""Which family and which head the name of an architecture stands for.

A port for another family adds its file to the list here; the loader and the saver need
nothing else.
"""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np

from tsi.errors import CheckpointError
from tsi.models import gemma3, llama, mistral, phi3, qwen2, qwen3
from tsi.models.decoder import DecoderConfig, LanguageModel, RewardModel
from tsi.models.family import Family
from tsi.models.rotary import Rope

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (llama, mistral, qwen2, qwen3, gemma3, phi3)
}
HEADS: dict[str, type[LanguageModel] | type[RewardModel]] = {
    "ForCausalLM": LanguageModel,
    "ForTokenClassification": RewardModel,
}
ARCHITECTURES: dict[str, tuple[Family, type[LanguageModel] | type[RewardModel]]] = {
    family.prefix + suffix: (family, head)
    for family in FAMILIES.values()
    for suffix, head in HEADS.items()
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
) -> tuple[type[LanguageModel] | type[RewardModel], DecoderConfig]:
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
        family, head = ARCHITECTURES[name]
        config = _read_config(path, fields, family)
        problems += _contradictions(config)
    if problems:
        raise CheckpointError(f"{path}: in the configuration, {'; '.join(problems)}.")
    return head, config


def _read_config(path: Path, fields: dict[str, Any], family: Family) -> DecoderConfig:
    try:
        return family.read(fields)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: the configuration lacks the field {error}."
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: the configuration is malformed: {error}."
        ) from None


def _contradictions(config: DecoderConfig) -> list[str]:
    problems = []
    if config.num_heads % config.num_kv_heads:
        problems.append("the query heads are not a multiple of the key-value heads")
    if config.head_width < 2 or config.head_width % 2:
        problems.append(f"the head width {config.head_width} is not even")
    ropes = [config.rope, *([config.local.rope] if config.local else [])]
    scalars = [config.norm_epsilon, *itertools.chain(*map(_numbers, ropes))]
    if not all(np.isfinite(value) and value > 0 for value in scalars):
        problems.append(f"one of {scalars} is not a positive number")
    for rope in ropes:
        pairs = int(config.head_width * rope.fraction)
        if not 0 < rope.fraction <= 1 or pairs < 2 or pairs % 2:
            problems.append(
                f"rotary embeddings turn {pairs} of {config.head_width} entries of a "
                "head, not an even number of them"
            )
        divisors = getattr(rope.scaling, "divisors", None)
        if divisors is not None and len(divisors) != pairs // 2:
            problems.append(
                f"LongRoPE has {len(divisors)} short factors for {pairs // 2} pairs"
            )
    window = config.local.window if config.local else 1
    if type(window) is not int or window < 1:
        problems.append(f"the sliding window is {window!r}, not a positive number")
    return problems


def _numbers(rope: Rope) -> list[float]:
    numbers = [rope.theta]
    for value in rope.scaling or ():
        if not isinstance(value, bool):
            numbers += value if isinstance(value, tuple) else [value]
    return [float(number) for number in numbers]
