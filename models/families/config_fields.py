"""Fields of a ``config.json`` that have the same name in all families."""

from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.decoder_config import DecoderConfig
from tsi.models.families.rope_fields import DEFAULT_LENGTH, write_rope
from tsi.models.families.values import read_number
from tsi.models.layers import ACTIVATIONS
from tsi.models.rotary import LongRopeScaling, Rope

MAX_NORM_EPSILON = 0.1


def read_sizes(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes, as arguments of :class:`DecoderConfig`.

    Without ``num_key_value_heads`` there is one key-value head per query head; without
    ``head_dim`` the heads divide the width.

    Raises:
        KeyError: a size is missing.
    """
    heads, width = fields["num_attention_heads"], fields["hidden_size"]
    kv_heads, head_width = fields.get("num_key_value_heads"), fields.get("head_dim")
    return {
        "vocab_size": fields["vocab_size"],
        "width": width,
        "hidden": fields["intermediate_size"],
        "num_layers": fields["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": heads if kv_heads is None else kv_heads,
        "head_width": width // heads if head_width is None else head_width,
    }


def read_max_length(fields: Mapping[str, Any], rope: Rope) -> int:
    """The context in tokens.

    With LongRoPE it is the original context unless a longer one is requested
    (``max_length`` of :func:`tsi.models.loading.checkpoint.load`).
    """
    length = fields.get("max_position_embeddings", DEFAULT_LENGTH)
    if isinstance(rope.scaling, LongRopeScaling):
        length = min(length, rope.scaling.original)
    return length


def read_eos_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text: the field holds one, a list of them, or null."""
    eos = fields.get("eos_token_id")
    if isinstance(eos, list):
        return tuple(eos)
    return () if eos is None else (eos,)


def read_activation(fields: Mapping[str, Any], name: str = "hidden_act") -> str:
    """The activation of the feed-forward layer; SiLU if the field is absent.

    Raises:
        CheckpointError: the activation is not supported.
    """
    activation = fields.get(name, "silu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json has {name}={activation!r}; supported are "
            f"{', '.join(ACTIVATIONS)}. Choose another checkpoint."
        )
    return activation


def read_norm_epsilon(fields: Mapping[str, Any]) -> float:
    """The epsilon of the RMSNorms, 1e-6 if the field is absent.

    Raises:
        CheckpointError: it is not a positive number up to MAX_NORM_EPSILON.
    """
    epsilon = read_number(fields, "rms_norm_eps", 1e-6)
    if epsilon > MAX_NORM_EPSILON:
        raise CheckpointError(
            f"config.json has rms_norm_eps={epsilon:g}, which would dominate the mean "
            f"square that it is added to; at most {MAX_NORM_EPSILON:g} is read. "
            "Correct it, or choose another checkpoint."
        )
    return epsilon


def write_fields(config: DecoderConfig, model_type: str) -> dict[str, Any]:
    """The fields of a ``config.json`` that all families write alike."""
    return {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.trained_length,
        "rope_parameters": write_rope(config.rope),
        "rope_theta": config.rope.theta,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
        "hidden_act": config.activation,
        "eos_token_id": list(config.eos_ids) or None,
    }


def write_attention_bias(config: DecoderConfig) -> dict[str, Any]:
    """``attention_bias``, which sets the biases of all four projections.

    Raises:
        CheckpointError: some of the four projections have a bias and some do not.
    """
    if config.attention_bias != config.output_bias:
        raise CheckpointError(
            f"A {config.family} model is saved with a bias on queries, keys, values "
            "and the attention's output, or on none of them; this one has "
            f"attention_bias={config.attention_bias} and "
            f"output_bias={config.output_bias}. Give the other a bias of zeros."
        )
    return {"attention_bias": config.attention_bias}
