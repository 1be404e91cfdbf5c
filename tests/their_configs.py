"""Configurations of transformers, by family: every feature that a family's port reads.

``COMMON`` and a row's changes are arguments of ``<Family>Config``.
"""

from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ORIGINAL = 200
"""The length of LongRoPE's short contexts."""
# Original contexts short enough that all ranges of wavelengths occur.
DEFAULT = {"rope_type": "default", "rope_theta": 500.0}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_TUNED = YARN | {
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "attention_factor": 0.9,
    "truncate": False,
}
YARN_DEEPSEEK = YARN | {"mscale": 1.2, "mscale_all_dim": 0.8}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.2 * i for i in range(8)],
    "long_factor": [9.0 - i for i in range(8)],
    "original_max_position_embeddings": ORIGINAL,
}
MIXED = ["sliding_attention", "full_attention"] * 2


def rope(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": dict(parameters)}


def gemma_ropes(everywhere: dict[str, Any], local: dict[str, Any]) -> dict[str, Any]:
    both = {"full_attention": dict(everywhere), "sliding_attention": dict(local)}
    return {"rope_parameters": both}


HEADS = {
    "multi-query": {"num_key_value_heads": 1},
    "a key head for each": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 32},
    "narrow heads": {"head_dim": 12, "num_attention_heads": 8},
}
TIED = {"tied": {"tie_word_embeddings": True}}
ROTARY = {
    "linear": rope(LINEAR),
    "llama3": rope(LLAMA3),
    "dynamic": rope(DYNAMIC),
    "longrope": rope(LONGROPE),
    "yarn": rope(YARN),
    "yarn, tuned": rope(YARN_TUNED),
    "yarn, two scales": rope(YARN_DEEPSEEK),
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 16}

THEIRS: dict[str, dict[str, dict[str, Any]]] = {
    "Llama": {
        "plain": {},
        "deep": {"num_hidden_layers": 9},
        "another epsilon": {"rms_norm_eps": 0.1},
        "biases of attention": {"attention_bias": True},
        "biases of the rest": {"mlp_bias": True},
        "all": {
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
            "pretraining_tp": 2,
            **rope(LLAMA3),
        },
        **TIED,
        **HEADS,
        **ROTARY,
    },
    "Mistral": {
        "no window": {"sliding_window": None},
        "window": {"sliding_window": 20},
        "window of one": {"sliding_window": 1},
        "all": {
            "sliding_window": 9,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "tie_word_embeddings": True,
            **rope(YARN_TUNED),
        },
        **HEADS,
        **ROTARY,
    },
    "Qwen2": {
        "no windows": {"use_sliding_window": False, "sliding_window": 8},
        "windows later": WINDOWS | {"max_window_layers": 2},
        "gelu": {"hidden_act": "gelu"},
        "windows everywhere": WINDOWS | {"max_window_layers": 0},
        "windows by type": WINDOWS | {"layer_types": MIXED},
        "all": {
            **WINDOWS,
            "max_window_layers": 1,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            **rope(YARN),
        },
        **ROTARY,
    },
    "Qwen3": {
        "default heads": {},
        "biases": {"attention_bias": True},
        "windows later": WINDOWS | {"max_window_layers": 2},
        "windows by type": WINDOWS | {"layer_types": MIXED},
        "all": {
            **WINDOWS,
            "attention_bias": True,
            "layer_types": MIXED,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "tie_word_embeddings": True,
            **rope(YARN_TUNED),
        },
        **HEADS,
        **ROTARY,
        "longrope": {"head_dim": 16, **rope(LONGROPE)},
    },
    "Gemma3": {
        "by period": {"num_hidden_layers": 7, "sliding_window": 12},
        "default scale": {"layer_types": MIXED, "sliding_window": 5},
        "no windows": {"layer_types": ["full_attention"] * 4},
        "all": {
            "head_dim": 24,
            "num_key_value_heads": 1,
            "sliding_window": 12,
            "layer_types": MIXED,
            "query_pre_attn_scalar": 20,
            "attention_bias": True,
            "final_logit_softcapping": 3.0,
            **gemma_ropes(LINEAR, DEFAULT),
        },
        "untied": {"tie_word_embeddings": False, "layer_types": MIXED, "head_dim": 16},
        "dynamic": {"layer_types": MIXED, **gemma_ropes(DYNAMIC, DYNAMIC)},
        "llama3": {"layer_types": MIXED, **gemma_ropes(LLAMA3, DEFAULT)},
        # Unrounded, transformers would pass over it here.
        "yarn in windows": {
            "layer_types": MIXED,
            **gemma_ropes(LLAMA3, YARN_TUNED | {"truncate": True}),
        },
        "yarn elsewhere": {"layer_types": MIXED, **gemma_ropes(YARN, DEFAULT)},
        "linear in windows": {"layer_types": MIXED, **gemma_ropes(DEFAULT, LINEAR)},
    },
    "Phi3": {
        "plain": {},
        "window": {"sliding_window": 24},
        "relu": {"hidden_act": "relu"},
        "partial rotary": rope(DEFAULT | {"partial_rotary_factor": 0.5}),
        "longrope": {"original_max_position_embeddings": ORIGINAL, **rope(LONGROPE)},
        "all": {
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "sliding_window": 10,
            "original_max_position_embeddings": ORIGINAL,
            **rope(
                LONGROPE
                | {
                    "partial_rotary_factor": 0.75,
                    "short_factor": [1.0 + 0.2 * i for i in range(6)],
                    "long_factor": [9.0 - i for i in range(6)],
                }
            ),
        },
    },
}
CHANGES = {
    "Gemma3": {
        "tie_word_embeddings": True,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 30,
    }
}
"""Of a family to ``COMMON``."""
