"""Features of a ``config.json`` that are errors in families without them.

A model that ignores a feature of its configuration writes fluent nonsense and raises no
error. So every feature that any family here has, or that related models are known for,
is listed, and each family says which of them it reads.
"""

import json
from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError

# The values of a field under which its feature is off.
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


def refuse_features(
    fields: Mapping[str, Any], family: str, supported: tuple[str, ...] = ()
) -> None:
    """Refuse the features that are on and that a family does not support.

    Args:
        fields: of config.json.
        family: its name, for the message.
        supported: names of the fields that the family reads.

    Raises:
        CheckpointError: a feature is on that is not in ``supported``; or
            ``layer_types`` is not a list.
    """
    for name, off in OFF.items():
        value = fields.get(name)
        if name not in supported and value not in off:
            raise CheckpointError(
                f"config.json has {name}={value!r}, which the {family} port does not "
                f"support (supported: {', '.join(map(json.dumps, off))}). Choose "
                "another checkpoint."
            )
    kinds = fields.get("layer_types")
    if kinds is None:
        return
    if not isinstance(kinds, list):
        raise CheckpointError(
            f"config.json has layer_types={str(kinds)[:50]}, which is not a list. "
            "Correct it, or choose another checkpoint."
        )
    if "layer_types" not in supported and set(kinds) - {"full_attention"}:
        raise CheckpointError(
            f"config.json has layer_types={sorted(set(kinds))}, of which the {family} "
            "port supports 'full_attention' only. Choose another checkpoint."
        )
