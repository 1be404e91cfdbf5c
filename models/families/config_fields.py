"""From the fields of a ``config.json`` to a :class:`DecoderConfig`, and back.

What the families share. A feature that any family here has, or is known for, is refused
by name where the family that reads the fields does not do it: a model that ignores what
its configuration asks for gives fluent nonsense and no error.
"""

import math
from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.decoder_config import DecoderConfig
from tsi.models.layers import ACTIVATIONS
from tsi.models.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    Scaling,
    YarnScaling,
)

LENGTH = 2048
"""The context of a configuration that does not say."""
LEAST, MOST = 1e-12, 1e15
"""Of numbers that are not sizes; what is beyond is damage, or zero in float32."""
MOST_EPSILON = 0.1

# What each feature is when it is off.
OFF: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "lm_head_bias": (False, None),
    "sliding_window": (None, 0),
    "use_sliding_window": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "partial_rotary_factor": (1.0, None),
    "use_bidirectional_attention": (False, None),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "clip_qkv": (None,),
    "alibi": (False, None),
    "parallel_residual": (False, None),
    "use_parallel_residual": (False, None),
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "embedding_multiplier": (1.0, None),
    "residual_multiplier": (1.0, None),
    "attention_multiplier": (None,),
    "logits_scaling": (1.0, None),
    "llama_4_scaling_beta": (None,),
    "no_rope_layers": (None,),
    "is_encoder_decoder": (False, None),
}


SHARED_KINDS = ("llama3", "linear", "yarn", "longrope", "dynamic")
"""Of rotary scaling, in the families that leave it to transformers' shared code."""


def refuse(fields: Mapping[str, Any], family: str, does: tuple[str, ...] = ()) -> None:
    """Refuse by name the features that are on and that a family's port does not do.

    Args:
        fields: of config.json.
        family: its name, for the message.
        does: features that the family reads itself.

    Raises:
        CheckpointError: one is on.
    """
    for name, off in OFF.items():
        value = fields.get(name)
        if name not in does and value not in off:
            raise CheckpointError(
                f"config.json asks for {name}={value!r}, which the {family} port does "
                f"not do (it does {off[0]!r}); choose another checkpoint."
            )
    kinds = fields.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise CheckpointError(
            f"config.json has layer_types={str(kinds)[:50]}, which is not a list. "
            "Correct it, or choose another checkpoint."
        )
    if "layer_types" not in does and set(kinds or ()) - {"full_attention"}:
        raise CheckpointError(
            f"config.json asks for layer_types={sorted(set(kinds))}, of which the "  # type: ignore[arg-type]
            f"{family} port does 'full_attention' only; choose another checkpoint."
        )


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """A field that is on or off, and off if it is absent or null.

    Raises:
        CheckpointError: it is neither.
    """
    value = fields.get(name)
    if value not in (True, False, None):
        raise CheckpointError(
            f"config.json has {name}={value!r}, which is neither true nor false."
        )
    return bool(value)


def positive(
    fields: Mapping[str, Any], name: str, default: float | int | None
) -> float:
    """A number of the fields, and the default if it is absent or null.

    Whatever else is there counts: zero does not ask for the default.

    Raises:
        KeyError: it is absent and has no default.
        CheckpointError: it is not a positive number of ordinary size.
    """
    value = fields.get(name)
    if value is None:
        if default is None:
            raise KeyError(name)
        return float(default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not LEAST <= value <= MOST:
        raise CheckpointError(
            f"config.json has {name}={repr(value)[:50]}, which is not a positive "
            f"number from {LEAST:g} to {MOST:g}. Correct it, or choose another "
            "checkpoint."
        )
    return float(value)


def window_of(fields: Mapping[str, Any], name: str = "sliding_window") -> int | None:
    """How many positions are seen; None where the field is absent, null or zero.

    Raises:
        CheckpointError: it is something else.
    """
    value = fields.get(name)
    if value is None or (type(value) is int and value == 0):
        return None
    if type(value) is not int or not 0 < value < 2**31:
        raise CheckpointError(
            f"config.json has {name}={repr(value)[:50]}, which is not a positive whole "
            "number under 2^31. Correct it, or choose another checkpoint."
        )
    return value


def table(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that is a table itself, empty if it is absent or null.

    Raises:
        CheckpointError: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(
            f"config.json has {name}={str(value)[:50]}, which is not a table of "
            "fields. Correct it, or choose another checkpoint."
        )
    return value


def common(fields: Mapping[str, Any], family: str, rope: Rope) -> dict[str, Any]:
    """The arguments of :class:`DecoderConfig` that every family reads alike.

    The context is the configuration's; with LongRoPE it is the original one, until a
    longer one is asked for.

    Raises:
        CheckpointError: an activation that no port has, or a value of a wrong type.
        KeyError, TypeError: a field is missing or of the wrong type.
    """
    heads = fields["num_attention_heads"]
    eos = fields.get("eos_token_id")
    named = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    activation = fields.get(named, "silu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json asks for {named}={activation!r}; the ports do "
            f"{', '.join(ACTIVATIONS)}. Choose another checkpoint."
        )
    length = fields.get("max_position_embeddings", LENGTH)
    if isinstance(rope.scaling, LongRopeScaling):
        length = min(length, rope.scaling.original)
    return {
        "vocab_size": fields["vocab_size"],
        "width": fields["hidden_size"],
        "hidden": fields["intermediate_size"],
        "num_layers": fields["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": _size(fields, "num_key_value_heads", heads),
        "head_width": _size(fields, "head_dim", fields["hidden_size"] // heads),
        "max_length": length,
        "rope": rope,
        "norm_epsilon": _epsilon(fields),
        "tied": flag(fields, "tie_word_embeddings"),
        "eos_ids": (
            tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        ),
        "activation": activation,
        "family": family,
    }


def _size(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name)
    return default if value is None else value


def _epsilon(fields: Mapping[str, Any]) -> float:
    epsilon = positive(fields, "rms_norm_eps", 1e-6)
    if epsilon > MOST_EPSILON:
        raise CheckpointError(
            f"config.json has rms_norm_eps={epsilon:g}, which would stand for the norm "
            "itself. Correct it, or choose another checkpoint."
        )
    return epsilon


def biases(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that ``attention_bias`` sets: all four projections have one."""
    bias = flag(fields, "attention_bias")
    return {"attention_bias": bias, "output_bias": bias}


def biases_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The other way.

    Raises:
        CheckpointError: some of the four projections have a bias and some have none.
    """
    if config.attention_bias != config.output_bias:
        raise CheckpointError(
            f"A {config.family} model is written with a bias on queries, keys, values "
            "and the attention's output, or on none of them; this one has "
            f"attention_bias={config.attention_bias} and "
            f"output_bias={config.output_bias}. Give the other a bias of zeros."
        )
    return {"attention_bias": config.attention_bias}


def rope_of(
    fields: Mapping[str, Any],
    family: str,
    kinds: tuple[str, ...],
    theta: float = 10_000.0,
    parameters: Mapping[str, Any] | None = None,
    *,
    partial: bool = False,
) -> Rope:
    """Read the rotary embedding, refusing the kinds of scaling that are not named.

    Args:
        fields: of config.json. transformers 5 writes ``rope_parameters``; earlier
            releases ``rope_theta`` and ``rope_scaling``.
        family: for the message.
        kinds: of scaling that the family's released models use.
        theta: the base, where the fields name none.
        parameters: read instead of the fields' own, for layers that differ.
        partial: whether the family can turn a part of each head only.

    Raises:
        CheckpointError: another kind, or a part where the family turns all.
    """
    if parameters is None:
        parameters = table(fields, "rope_parameters") or table(fields, "rope_scaling")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "su":  # LongRoPE's first name, in early Phi-3 checkpoints
        kind = "longrope"
    if kind not in ("default", *kinds):
        raise CheckpointError(
            f"config.json asks for rotary scaling {kind!r}, which the {family} port "
            f"does not do (it does {', '.join(map(repr, ('default', *kinds)))}); "
            "choose another checkpoint."
        )
    name = "partial_rotary_factor"
    fraction = positive(parameters, name, positive(fields, name, 1.0))
    if fraction != 1.0 and not partial:
        raise CheckpointError(
            f"config.json asks for partial_rotary_factor={fraction!r}, and the "
            f"{family} port turns whole heads; choose another checkpoint."
        )
    base = positive(parameters, "rope_theta", positive(fields, "rope_theta", theta))
    if base <= 1:
        raise CheckpointError(
            f"config.json has rope_theta={base:g}; the base of rotary wavelengths is "
            "above 1. Correct it, or choose another checkpoint."
        )
    return Rope(base, fraction, _scaling(kind, parameters, fields))


def _scaling(
    kind: str, rope: Mapping[str, Any], fields: Mapping[str, Any]
) -> Scaling | None:
    length = fields.get("max_position_embeddings")
    before = "original_max_position_embeddings"
    if kind == "linear":
        return LinearScaling(positive(rope, "factor", None))
    if kind == "dynamic":
        return DynamicScaling(positive(rope, "factor", None))
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        factor, low, high = (positive(rope, name, None) for name in names)
        if low >= high:
            raise CheckpointError(
                f"config.json has low_freq_factor={low:g} and high_freq_factor="
                f"{high:g}, between which frequencies are blended: the second must be "
                "larger. Correct it, or choose another checkpoint."
            )
        return Llama3Scaling(factor, low, high, positive(rope, before, length))
    if kind == "yarn":
        original = positive(rope, before, length)
        factor = positive(rope, "factor", (length or original) / original)
        return YarnScaling(
            factor,
            original,
            positive(rope, "beta_fast", 32.0),
            positive(rope, "beta_slow", 1.0),
            positive(rope, "attention_factor", _yarn_attention(rope, factor)),
            rope.get("truncate") is None or flag(rope, "truncate"),
        )
    if kind == "longrope":
        stretched = fields.get("max_position_embeddings", LENGTH)
        # transformers prefers the field that stands beside the parameters.
        original = positive(fields, before, positive(rope, before, stretched))
        factor = positive(rope, "factor", stretched / original)
        attention = (
            math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        )
        short, long = (
            tuple(positive({half: divisor}, half, None) for divisor in rope[half])
            for half in ("short_factor", "long_factor")
        )
        attention = positive(rope, "attention_factor", attention)
        return LongRopeScaling(short, long, int(original), stretched, attention)
    return None


def _yarn_attention(rope: Mapping[str, Any], factor: float) -> float:
    """What YaRN multiplies by where ``attention_factor`` does not say.

    A scale of zero is as none, in the code that was published.
    """
    names = ("mscale", "mscale_all_dim")
    if any(rope.get(name) in (None, 0) for name in names):
        return _temperature(factor, 1.0)
    above, below = (positive(rope, name, None) for name in names)
    return _temperature(factor, above) / _temperature(factor, below)


def _temperature(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def common_to_hf(config: DecoderConfig, model_type: str) -> dict[str, Any]:
    """The fields of a ``config.json`` that every family writes alike."""
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.longest,
        "rope_parameters": rope_to_hf(config.rope),
        "rope_theta": config.rope.theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "hidden_act": config.activation,
        "eos_token_id": list(config.eos_ids) or None,
    }


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """The ``rope_parameters`` of a rotary embedding."""
    fields: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        fields["partial_rotary_factor"] = rope.fraction
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        fields |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3Scaling):
        fields |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": int(scaling.original),
        }
    elif isinstance(scaling, YarnScaling):
        fields |= {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": int(scaling.original),
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention,
            "truncate": scaling.truncate,
        }
    elif isinstance(scaling, LongRopeScaling):
        fields |= {
            "rope_type": "longrope",
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            "original_max_position_embeddings": scaling.original,
            "attention_factor": scaling.attention,
        }
    elif isinstance(scaling, DynamicScaling):
        fields |= {"rope_type": "dynamic", "factor": scaling.factor}
    return fields
