"""The family and the head of each architecture name.

A new family adds its file to the list here; the loader and the saver need nothing else.
"""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np

from tsi.errors import CheckpointError
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.families import gemma3, llama, mistral, phi3, qwen2, qwen3
from tsi.models.families.family import Family, Tensors
from tsi.models.families.text_half import TEXT_ARCHITECTURES
from tsi.models.heads import OutcomeScorer, ProcessScorer, SequenceScorer, ValueScorer
from tsi.models.rotary import LongRopeScaling, Rope

Head = type[LanguageModel] | type[RewardModel]

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (llama, mistral, qwen2, qwen3, gemma3, phi3)
}
HEADS: dict[str, Head] = {
    "ForCausalLM": LanguageModel,
    "ForTokenClassification": RewardModel,
    "ForSequenceClassification": SequenceScorer,
    "ForProcessRewardModel": ProcessScorer,
    "ForRewardModel": OutcomeScorer,
    "ForPrmModel": ValueScorer,
}
# Heads whose released code fixes the number of labels, whatever config.json has.
NUM_LABELS: dict[Any, int] = {ProcessScorer: 2, OutcomeScorer: 1, ValueScorer: 1}
# Tensors of the heads of reward models, alike in all families; lm_head is a family's.
HEAD_TENSORS: dict[str, str] = {
    "score.weight": "score.kernel",
    "score.bias": "bias",
    "score.0.weight": "inner.kernel",
    "score.0.bias": "inner.bias",
    "score.2.weight": "outer.kernel",
    "score.2.bias": "outer.bias",
    "v_head.summary.weight": "value.summary.kernel",
    "v_head.summary.bias": "value.summary.bias",
}
ARCHITECTURES: dict[str, tuple[Family, Head]] = {
    family.prefix + suffix: (family, head)
    for family in FAMILIES.values()
    for suffix, head in HEADS.items()
}

# Where a family has multimodal models too, transformers names a text model otherwise;
# :mod:`tsi.models.families.text_half` makes text models of multimodal ones.
TEXT_ONLY = {"Gemma3ForSequenceClassification": "Gemma3TextForSequenceClassification"}
ARCHITECTURES |= {text: ARCHITECTURES[name] for name, text in TEXT_ONLY.items()}

# Old releases stored these; they follow from the configuration.
ROTARY_TABLE = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
FLOAT32_MAX = float(np.finfo(np.float32).max)


def architecture_of(path: Path, fields: dict[str, Any]) -> tuple[Head, DecoderConfig]:
    """The module class and the validated configuration of a checkpoint.

    Args:
        path: the checkpoint, for messages.
        fields: of its config.json, or the same fields from a GGUF's metadata.

    Raises:
        CheckpointError: an architecture, a feature or a size is not supported.
    """
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} holds the architecture {name!r}. Supported: "
            f"{', '.join(ARCHITECTURES)}; and the text half of "
            f"{', '.join(TEXT_ARCHITECTURES)}."
        )
    if fields.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path} is quantised (quantization_config in config.json); quantised "
            "weights are read from GGUF only. Choose the unquantised checkpoint or a "
            "GGUF of it."
        )
    # Null is an error for a required size, and means the default for an optional one.
    sizes = {
        size: fields[size]
        for size in (*SIZES, *OPTIONAL_SIZES)
        if size in fields and not (size in OPTIONAL_SIZES and fields[size] is None)
    }
    problems = [
        f"{size} is {value!r}, not a positive whole number under 2^31"
        for size, value in sizes.items()
        if type(value) is not int or not 0 < value < 2**31
    ]
    eos = fields.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    # Token ids are int32 everywhere.
    if not all(type(id) is int and 0 <= id < 2**31 for id in ends):
        problems.append(f"eos_token_id is {eos!r}, not one token id or a list of them")
    if not problems:
        family, head = ARCHITECTURES[name]
        config = _read_config(path, fields, family)
        config = dataclasses.replace(config, num_labels=_num_labels(head, fields))
        problems += _contradictions(config)
        if config.num_labels not in (1, 2):
            problems.append(f"{name} has {config.num_labels} labels, not 1 or 2")
    if problems:
        raise CheckpointError(f"{path}: in the configuration, {'; '.join(problems)}.")
    return head, config


def drop_unused_head(head: type, tensors: Tensors) -> Tensors:
    """The tensors of a model, without the vocabulary head where it is a reward model.

    Skywork's reward models store the head of the language model they were trained from.
    """
    if head is LanguageModel:
        return tensors
    return {name: t for name, t in tensors.items() if name != "lm_head.weight"}


def _num_labels(head: Any, fields: dict[str, Any]) -> int:
    if head is LanguageModel:
        return DecoderConfig.num_labels
    if head in NUM_LABELS:
        return NUM_LABELS[head]
    # transformers does not write its default of two labels to config.json.
    names, stated = fields.get("id2label"), fields.get("num_labels")
    count = len(names) if isinstance(names, dict) else 2
    return count if stated is None else stated


def _read_config(path: Path, fields: dict[str, Any], family: Family) -> DecoderConfig:
    try:
        return family.read(fields)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except KeyError as error:
        raise CheckpointError(
            f"{path}: the configuration lacks the field {error}."
        ) from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: the configuration is malformed: {error}."
        ) from None


def _contradictions(config: DecoderConfig) -> list[str]:
    problems = []
    if config.num_heads % config.num_kv_heads:
        problems.append("the query heads are not a multiple of the key-value heads")
    if config.head_width < 2 or config.head_width % 2:
        problems.append(f"the head width {config.head_width} is not even")
    ropes = [
        config.rope,
        *([config.sliding_window.rope] if config.sliding_window else []),
    ]
    scalars = [config.norm_epsilon, *itertools.chain(*map(_numbers, ropes))]
    optional = (config.query_scale, config.attention_softcap, config.logit_softcap)
    scalars += [scalar for scalar in optional if scalar is not None]
    if not all(_is_positive(value) for value in scalars):
        problems.append(f"one of {scalars} is not a positive number")
    for rope in ropes:
        in_range = 0 < rope.fraction <= 1
        width = int(config.head_width * rope.fraction) if in_range else 0
        if width < 2 or width % 2:
            problems.append(
                f"{width} of the {config.head_width} entries of a head are rotated, "
                "not a positive even number of them"
            )
        if isinstance(rope.scaling, LongRopeScaling):
            factors = {"short": rope.scaling.short, "long": rope.scaling.long}
            problems += [
                f"LongRoPE has {len(values)} {name} factors for {width // 2} pairs"
                for name, values in factors.items()
                if len(values) != width // 2
            ]
    window = config.sliding_window.size if config.sliding_window else 1
    if type(window) is not int or not 0 < window < 2**31:
        problems.append(
            f"the sliding window is {window!r}, not a positive whole number under 2^31"
        )
    return problems


def _is_positive(value: Any) -> bool:
    # A whole number in JSON may be too large for any floating-point type.
    return type(value) in (int, float) and 0 < value <= FLOAT32_MAX


def _numbers(rope: Rope) -> list[int | float]:
    numbers: list[int | float] = [rope.theta]
    for value in rope.scaling or ():
        if not isinstance(value, bool):
            numbers += value if isinstance(value, tuple) else [value]
    return numbers
