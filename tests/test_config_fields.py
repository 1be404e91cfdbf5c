"""Every field of transformers' configurations: read, refused, or without effect.

A release of transformers that adds a field to a family fails here until somebody says
which it is, because a field that is passed over gives fluent nonsense and no error.
"""

import dataclasses
from typing import Any

import pytest
import transformers

from tsi.errors import CheckpointError
from tsi.models.families.architectures import FAMILIES

CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma3": transformers.Gemma3TextConfig,
    "phi3": transformers.Phi3Config,
}
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LAYERS = ["full_attention", "sliding_attention"] * 2
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
# A value of each field that is not what the base has; with what must be on beside it.
READ: dict[str, Any] = {
    "vocab_size": 98,
    "hidden_size": 128,
    "intermediate_size": 177,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-2,
    "tie_word_embeddings": None,  # the opposite of the family's own
    "eos_token_id": 7,
    "hidden_act": "gelu_pytorch_tanh",
    "rope_parameters": LINEAR,
}
HEADS = {"head_dim": 24}
BIAS = {"attention_bias": True}
WINDOWS = {
    "use_sliding_window": True,
    "sliding_window": 16,
    "max_window_layers": 2,
    "layer_types": LAYERS,
}
ALSO_READ: dict[str, dict[str, Any]] = {
    "llama": HEADS | BIAS | {"mlp_bias": True},
    "mistral": HEADS | {"sliding_window": 16},
    "qwen2": WINDOWS,
    "qwen3": WINDOWS | HEADS | BIAS,
    "gemma3": {
        **HEADS,
        **BIAS,
        "hidden_activation": "silu",
        "sliding_window": 16,
        "layer_types": LAYERS,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
        "rope_parameters": {"full_attention": LINEAR},
    },
    "phi3": {
        "sliding_window": 16,
        "original_max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "gemma3": {"use_bidirectional_attention": True},
}
# On logits: dropout is for training, and how a product is parted changes no sum.
WITHOUT_EFFECT: dict[str, Any] = {
    "initializer_range": 0.5,
    "use_cache": False,
    "pad_token_id": 5,
    "bos_token_id": 6,
    "attention_dropout": 0.1,
}
ALSO_WITHOUT_EFFECT: dict[str, dict[str, Any]] = {
    "llama": {"pretraining_tp": 2},
    "phi3": {"resid_pdrop": 0.1, "embd_pdrop": 0.1},
}
# Fields that show only where another is on.
BESIDE: dict[str, dict[str, Any]] = {
    "sliding_window": {"use_sliding_window": True, "max_window_layers": 0},
    "use_sliding_window": {"max_window_layers": 0},
    "max_window_layers": {"use_sliding_window": True},
    "layer_types": {"use_sliding_window": True},
    "original_max_position_embeddings": {
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
        },
    },
}
EVERY = pytest.mark.parametrize("name", FAMILIES)


def read_fields(name: str) -> dict[str, Any]:
    own = ALSO_READ[name]
    shared = dict(READ)
    if "hidden_activation" in own:
        del shared["hidden_act"]
    return shared | own


def of_no_effect(name: str) -> dict[str, Any]:
    return WITHOUT_EFFECT | ALSO_WITHOUT_EFFECT.get(name, {})


@EVERY
def test_every_field_of_transformers_configuration_is_known(name):
    shared = {f.name for f in dataclasses.fields(transformers.PretrainedConfig)}
    theirs = {f.name for f in dataclasses.fields(CLASSES[name])} - shared
    ours = [read_fields(name), REFUSED.get(name, {}), of_no_effect(name)]
    assert theirs == set().union(*ours)
    assert len(theirs) == sum(map(len, ours))


@EVERY
def test_fields_that_are_read_change_the_configuration(name):
    read = FAMILIES[name].read
    for field, value in read_fields(name).items():
        others = BESIDE.get(field, {}).items()
        beside = SIZES | {k: v for k, v in others if k in read_fields(name)}
        before = read(beside)
        if field == "tie_word_embeddings":
            value = not before.tied
        assert read(beside | {field: value}) != before, field


@EVERY
def test_fields_without_effect_change_nothing(name):
    read = FAMILIES[name].read
    for field, value in of_no_effect(name).items():
        assert read(SIZES | {field: value}) == read(SIZES), field


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_no_port_does_are_refused_by_name(name):
    for field, value in REFUSED[name].items():
        with pytest.raises(CheckpointError, match=f"{field}={value}"):
            FAMILIES[name].read(SIZES | {field: value})


@EVERY
def test_what_a_configuration_leaves_out_is_what_transformers_takes(name):
    family = FAMILIES[name]
    sizes = SIZES | {"num_attention_heads": 32, "hidden_size": 256}
    all_of_them = CLASSES[name](**sizes).to_dict()
    assert family.read(sizes) == family.read(all_of_them)
