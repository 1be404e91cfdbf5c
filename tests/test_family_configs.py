"""Configurations of every family: read, written, and refused by name."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from published_configs import PUBLISHED
from small_families import READ, WRITTEN

from tsi.errors import CheckpointError
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import SlidingWindow
from tsi.models.families.architectures import FAMILIES, architecture_of
from tsi.models.families.features import OFF
from tsi.models.families.text_half import text_fields
from tsi.models.rotary import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
)

EVERY = pytest.mark.parametrize("name", WRITTEN)


def fields_of(name: str) -> dict:
    return FAMILIES[name].write(WRITTEN[name])


def read_published(name: str, **changes):
    fields = text_fields(Path(name), PUBLISHED[name][1] | changes)
    return architecture_of(Path(name), fields)[1]


def test_every_family_has_a_small_configuration():
    assert WRITTEN.keys() == FAMILIES.keys()
    assert {config.family for config in READ.values()} == FAMILIES.keys()


@EVERY
def test_a_configuration_survives_the_round_trip_to_hugging_face(name):
    family = FAMILIES[name]
    config = WRITTEN[name]
    assert family.read(family.write(config)) == config
    plain = dataclasses.replace(
        config,
        sliding_window=None,
        rope=config.rope._replace(scaling=None),
        tied=not config.tied,
        eos_ids=(),
        num_kv_heads=4,
        attention_softcap=None,
        logit_softcap=None,
    )
    assert family.read(family.write(plain)) == plain


@EVERY
def test_a_family_names_the_tensors_of_all_its_features_and_no_others(name):
    config = dataclasses.replace(WRITTEN[name], tied=False)
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    paths = {".".join(map(str, keys)) for keys, _ in leaves}
    assert FAMILIES[name].tensor_names.keys() == paths


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_gives_a_model_of_the_published_size(name):
    config = read_published(name)
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    shapes = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in shapes) == PUBLISHED[name][0]


def test_published_configurations_say_what_differs_between_families():
    llama = read_published("Llama-3.2-1B")
    assert llama.rope == Rope(5e5, scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192.0))
    assert llama.eos_ids == (128001, 128008, 128009)
    assert llama.sliding_window is None
    mistral = read_published("Mistral-7B-v0.1")
    assert mistral.sliding_window == SlidingWindow(4096, (True,) * 32, Rope(1e4))
    assert read_published("Mistral-7B-v0.1", sliding_window=None).sliding_window is None
    assert read_published("Qwen2.5-Math-7B-Instruct").sliding_window is None
    some = {"use_sliding_window": True, "max_window_layers": 21}
    qwen2 = read_published("Qwen2.5-Math-7B-Instruct", **some)
    assert qwen2.attention_bias
    assert qwen2.sliding_window == SlidingWindow(
        4096, (False,) * 21 + (True,) * 7, Rope(1e4)
    )
    qwen3 = read_published("Qwen3-0.6B")
    assert (qwen3.query_key_norm, qwen3.head_width, qwen3.sliding_window) == (
        True,
        128,
        None,
    )
    stretched = {"rope_type": "yarn", "factor": 4.0}
    stretched |= {"original_max_position_embeddings": 32768}
    qwen3 = read_published("Qwen3-0.6B", rope_scaling=stretched)
    temperature = pytest.approx(0.1 * math.log(4) + 1)
    yarn = YarnScaling(4.0, 32768.0, 32.0, 1.0, temperature, True)
    assert qwen3.rope == Rope(1e6, scaling=yarn)
    gemma = read_published("gemma-3-1b-it")
    assert gemma.rope == Rope(1e6)
    everywhere_at = [
        i for i, is_local in enumerate(gemma.sliding_window.layers) if not is_local
    ]
    assert everywhere_at == [5, 11, 17, 23]
    assert (gemma.sliding_window.size, gemma.sliding_window.rope) == (512, Rope(1e4))
    assert gemma.embedding_scale == pytest.approx(1152**0.5)
    assert (gemma.query_scale, gemma.tied) == (1 / 16, True)
    assert (gemma.activation, gemma.norm_offset) == ("gelu_pytorch_tanh", 1.0)
    fields = dict(PUBLISHED["gemma-3-1b-it"][1])
    for left_out in ("rope_local_base_freq", "rope_theta", "sliding_window_pattern"):
        del fields[left_out]
    assert architecture_of(Path("gemma"), fields)[1] == gemma
    seeing = read_published("gemma-3-4b-it")
    assert seeing.rope == Rope(1e6, scaling=LinearScaling(8.0))
    assert (seeing.sliding_window.size, seeing.sliding_window.rope) == (1024, Rope(1e4))
    assert (seeing.eos_ids, seeing.tied) == ((1, 106), True)
    phi3 = read_published("Phi-3-mini-4k-instruct")
    assert phi3.sliding_window == SlidingWindow(2047, (True,) * 32, Rope(1e4))
    phi4 = read_published("Phi-4-mini-instruct")
    # Longer contexts turn by other angles, and are used where they are asked for.
    assert phi4.max_length == 4096
    attention = pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    halves = phi4.rope.scaling[:2]
    scaling = LongRopeScaling(*halves, 4096, 131_072, attention)
    assert phi4.rope == Rope(1e4, 0.75, scaling)
    assert (halves[0], len(halves[1])) == ((1.0,) * 48, 48)


@EVERY
def test_the_rotary_fields_of_old_and_new_releases_read_alike(name):
    new = fields_of(name)
    old = dict(new)
    parameters = old.pop("rope_parameters")
    if name == "gemma3":
        old["rope_local_base_freq"] = parameters["sliding_attention"]["rope_theta"]
        parameters = parameters["full_attention"]
    old["rope_theta"] = parameters["rope_theta"]
    if parameters["rope_type"] != "default":
        old["rope_scaling"] = {
            key: value for key, value in parameters.items() if key != "rope_theta"
        }
        old["rope_scaling"]["type"] = old["rope_scaling"].pop("rope_type")
    assert FAMILIES[name].read(old) == FAMILIES[name].read(new)


# A value of each feature that turns it on.
ON: dict[str, object] = {
    "attention_bias": True,
    "mlp_bias": True,
    "lm_head_bias": True,
    "sliding_window": 16,
    "use_sliding_window": True,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 64,
    "partial_rotary_factor": 0.5,
    "use_bidirectional_attention": True,
    "use_qk_norm": True,
    "qk_layernorm": True,
    "clip_qkv": 8.0,
    "alibi": True,
    "parallel_residual": True,
    "use_parallel_residual": True,
    "num_experts": 8,
    "num_local_experts": 8,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015,
    "logits_scaling": 8.0,
    "llama_4_scaling_beta": 0.1,
    "no_rope_layers": [1, 1, 0],
    "is_encoder_decoder": True,
}
DOES: dict[str, set[str]] = {
    "llama": {"attention_bias", "mlp_bias"},
    "mistral": {"sliding_window"},
    "qwen2": {"sliding_window", "use_sliding_window"},
    "qwen3": {"attention_bias", "sliding_window", "use_sliding_window"},
    "gemma3": {
        "attention_bias",
        "sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "query_pre_attn_scalar",
    },
    "phi3": {"sliding_window", "partial_rotary_factor"},
}


def test_every_feature_known_by_name_is_tried():
    assert OFF.keys() <= ON.keys()


@pytest.mark.parametrize("feature", ON)
@EVERY
def test_a_feature_that_a_family_does_not_do_is_refused_by_name(name, feature):
    fields = fields_of(name) | {feature: ON[feature]}
    if feature in DOES[name]:
        assert FAMILIES[name].read(fields).family == name
        return
    says = f"{feature}=.* the .* port does not support"
    with pytest.raises(CheckpointError, match=says):
        FAMILIES[name].read(fields)


@EVERY
def test_a_part_of_a_head_is_turned_where_the_family_does_so(name):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    if name == "gemma3":
        rope = {"full_attention": rope}
    fields = fields_of(name) | {"rope_parameters": rope}
    if name == "phi3":
        assert FAMILIES[name].read(fields).rope.fraction == 0.5
        return
    with pytest.raises(CheckpointError, match="rotates whole heads"):
        FAMILIES[name].read(fields)


def test_numbers_of_longrope_are_taken_from_where_transformers_takes_them():
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 16,
    }
    fields = fields_of("phi3") | {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
    }
    plain = FAMILIES["phi3"].read(fields | {"rope_parameters": rope})
    assert plain.max_length == 32
    assert plain.rope.attention == pytest.approx((1 + np.log(4) / np.log(32)) ** 0.5)
    stated = FAMILIES["phi3"].read(fields | {"rope_parameters": rope | {"factor": 8.0}})
    assert stated.rope.attention == pytest.approx((1 + np.log(8) / np.log(32)) ** 0.5)


def test_phi3_has_an_epsilon_of_its_own():
    fields = {k: v for k, v in fields_of("phi3").items() if k != "rms_norm_eps"}
    assert FAMILIES["phi3"].read(fields).norm_epsilon == 1e-5


STRETCHED = {
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 2.0],
    "long_factor": [1.0, 2.0],
}
KINDS = ("linear", "llama3", "yarn", "longrope", "dynamic", "proportional", "ntk")
STRETCHES = {
    "llama": {"linear", "llama3", "yarn", "longrope", "dynamic"},
    "mistral": {"linear", "llama3", "yarn", "longrope", "dynamic"},
    "qwen2": {"linear", "llama3", "yarn", "longrope", "dynamic"},
    "qwen3": {"linear", "llama3", "yarn", "longrope", "dynamic"},
    "gemma3": {"linear", "llama3", "yarn", "dynamic"},
    "phi3": {"longrope"},
}


@pytest.mark.parametrize("kind", KINDS)
@EVERY
def test_rotary_scaling_is_done_or_refused_by_name(name, kind):
    parameters = STRETCHED | {"rope_type": kind}
    if name == "gemma3":
        parameters = {"full_attention": parameters, "sliding_attention": {}}
    fields = fields_of(name) | {"rope_parameters": parameters}
    if kind not in STRETCHES[name]:
        with pytest.raises(CheckpointError, match=f"rotary scaling '{kind}'"):
            FAMILIES[name].read(fields)
        return
    config = FAMILIES[name].read(fields)
    assert type(config.rope.scaling).__name__.lower() == f"{kind}scaling"
    assert FAMILIES[name].read(FAMILIES[name].write(config)) == config


def test_gemma_does_not_do_a_yarn_that_transformers_passes_over():
    yarn = STRETCHED | {"rope_type": "yarn", "truncate": False}
    plain = {"rope_type": "default"}
    for everywhere, local in ((plain, yarn), (yarn, plain)):
        ropes = {"full_attention": everywhere, "sliding_attention": local}
        with pytest.raises(CheckpointError, match="truncate=false"):
            FAMILIES["gemma3"].read(fields_of("gemma3") | {"rope_parameters": ropes})


@EVERY
def test_other_activations_and_kinds_of_layers_are_refused_by_name(name):
    which = "hidden_activation" if name == "gemma3" else "hidden_act"
    with pytest.raises(CheckpointError, match=f"{which}='relu2'"):
        FAMILIES[name].read(fields_of(name) | {which: "relu2"})
    with pytest.raises(CheckpointError, match=f"{which}=None"):
        FAMILIES[name].read(fields_of(name) | {which: None})
    kinds = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(CheckpointError, match=r"layer_types.*chunked_attention"):
        FAMILIES[name].read(fields_of(name) | {"layer_types": kinds})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("qwen3", "use_sliding_window", "abc"),
        ("llama", "mlp_bias", "false"),
        ("llama", "attention_bias", []),
        ("gemma3", "tie_word_embeddings", 2),
        ("mistral", "rms_norm_eps", "8"),
        ("mistral", "rms_norm_eps", True),
    ],
)
def test_values_of_another_type_are_refused_by_name(name, field, value):
    with pytest.raises(CheckpointError, match=re.escape(f"{field}={value!r}")):
        FAMILIES[name].read(fields_of(name) | {field: value})


def test_a_list_of_layers_that_contradicts_its_configuration_is_refused():
    fields = fields_of("qwen3")
    with pytest.raises(CheckpointError, match="2 layer_types for 3 layers"):
        FAMILIES["qwen3"].read(fields | {"layer_types": ["full_attention"] * 2})
    with pytest.raises(CheckpointError, match="contradict each other"):
        FAMILIES["qwen3"].read(fields | {"use_sliding_window": False})


@EVERY
def test_what_a_family_writes_has_no_contradiction(name):
    fields = fields_of(name)
    fields["architectures"] = [f"{FAMILIES[name].prefix}ForCausalLM"]
    assert architecture_of(Path(name), fields) == (LanguageModel, WRITTEN[name])


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_a_bias_in_a_part_of_the_attention_is_not_written(name):
    config = dataclasses.replace(WRITTEN[name], output_bias=False)
    with pytest.raises(CheckpointError, match="Give the other a bias of zeros"):
        FAMILIES[name].write(config)


def test_longrope_is_written_with_its_stretched_context():
    family = FAMILIES["phi3"]
    used = READ["phi3 beyond its original length"]
    fields = family.write(used)
    assert fields["max_position_embeddings"] == 64
    assert family.read(fields) == dataclasses.replace(used, max_length=24)


@pytest.mark.parametrize("number", [10**40, 10**400], ids=["float64", "no float"])
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("gemma3", "final_logit_softcapping"),
        ("gemma3", "attn_logit_softcapping"),
        ("gemma3", "rms_norm_eps"),
        ("mistral", "sliding_window"),
    ],
)
def test_numbers_beyond_float32_are_refused(name, field, number):
    fields = fields_of(name) | {field: number}
    fields["architectures"] = [f"{FAMILIES[name].prefix}ForCausalLM"]
    with pytest.raises(CheckpointError, match=r"positive|malformed"):
        architecture_of(Path(name), fields)
