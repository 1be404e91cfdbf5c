"""Of every family, a GGUF gives the same model as the safetensors that it came from."""

import dataclasses

import numpy as np
import pytest
from small_checkpoints import logits, parameters, saved, small_config, write_gguf

from tsi.errors import CheckpointError
from tsi.models.decoder_config import SlidingWindow
from tsi.models.gguf.rope import llama3_constants
from tsi.models.loading.checkpoint import load
from tsi.models.rotary import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rope,
    YarnScaling,
    inverse_frequencies,
)

TOKENS = np.arange(60).reshape(2, 30) % 40
LONG, LONGER = (1.0, 1.5, 4.0), (2.0, 3.5, 8.0)
# Layers of Gemma 3 that have a window: five of six.
SOME = (True,) * 5 + (False,)


def gemma(**changes):
    fields = {
        "family": "gemma3",
        "num_layers": 6,
        "head_width": 12,
        "activation": "gelu_pytorch_tanh",
        "query_key_norm": True,
        "post_norms": True,
        "norm_offset": 1.0,
        "embedding_scale": 32**0.5,
        "query_scale": 12**-0.5,
        "logit_softcap": 3.0,
        "rope": Rope(1e6, scaling=LinearScaling(8.0)),
        "sliding_window": SlidingWindow(5, SOME, Rope(1e4)),
    }
    return small_config(**(fields | changes))


YARN = YarnScaling(4.0, 16.0, 24.0, 2.0, 0.1 * np.log(4.0) + 1.0, True)
CASES = {
    "llama": small_config(tied=False),
    "llama with biases": small_config(
        attention_bias=True, output_bias=True, mlp_bias=True
    ),
    "llama linear": small_config(rope=Rope(5e4, scaling=LinearScaling(2.0))),
    "llama wide heads": small_config(head_width=12),
    "mistral": small_config(family="mistral"),
    "qwen2": small_config(family="qwen2", attention_bias=True),
    "qwen2 yarn": small_config(
        family="qwen2", attention_bias=True, rope=Rope(scaling=YARN)
    ),
    "qwen3": small_config(family="qwen3", query_key_norm=True, head_width=12),
    "qwen3 with biases": small_config(
        family="qwen3", query_key_norm=True, attention_bias=True, output_bias=True
    ),
    "gemma3": gemma(),
    "gemma3 with biases": gemma(attention_bias=True, output_bias=True),
    "gemma3 everywhere": gemma(sliding_window=None, logit_softcap=None),
    "phi3": small_config(
        family="phi3", tied=False, sliding_window=SlidingWindow(7, (True,) * 3, Rope())
    ),
    "phi3 partly turned": small_config(family="phi3", rope=Rope(1e4, 0.75)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fuse", [False, True])
def test_a_gguf_of_every_family_equals_the_safetensors(tmp_path, name, fuse):
    config = CASES[name]
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config, fuse=fuse)
    check_same(folder, file)


def check_same(folder, file, **how):
    (model, config), (other, other_config) = load(folder, **how), load(file, **how)
    # Llama and Mistral without a window are the same architecture in GGUF.
    family = "llama" if config.family == "mistral" else config.family
    assert other_config.family == family
    ones, twos = flat(config), flat(other_config)
    assert ones.keys() == twos.keys()
    for key, value in ones.items():
        number = isinstance(value, float)
        assert twos[key] == (pytest.approx(value, rel=1e-6) if number else value), key
    one, two = parameters(model), parameters(other)
    assert one.keys() == two.keys()
    # Adding one to a norm's scale and taking it away rounds.
    atol = 1e-7 if family == "gemma3" else 0.0
    for key in one:
        np.testing.assert_allclose(one[key], two[key], rtol=0, atol=atol, err_msg=key)
    np.testing.assert_allclose(logits(model, TOKENS), logits(other, TOKENS), atol=1e-5)


def flat(value, prefix=""):
    """Values of a configuration by name: some numbers went by way of float32."""
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    elif isinstance(value, tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    parts = [flat(v, f"{prefix}.{k}") for k, v in value.items() if k != "family"]
    return {key: number for part in parts for key, number in part.items()}


def test_the_architecture_mistral3_is_mistral(tmp_path):
    config = small_config(family="mistral")
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config, architecture="mistral3")
    model, found = load(file)
    assert (found.family, found.sliding_window) == ("mistral", None)
    expected = logits(load(folder)[0], TOKENS)
    np.testing.assert_allclose(logits(model, TOKENS), expected, atol=1e-5)


def test_a_window_in_the_metadata_of_llama_makes_it_mistral(tmp_path):
    local = SlidingWindow(6, (True,) * 3, Rope())
    config = small_config(family="mistral", sliding_window=local)
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config, fields={"llama.attention.sliding_window": 6})
    model, found = load(file)
    assert (found.family, found.sliding_window) == ("mistral", local)
    expected = logits(load(folder)[0], TOKENS)
    np.testing.assert_allclose(logits(model, TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize("pattern", [2, [True, False] * 3])
def test_gemma_layers_with_a_window_may_be_listed(tmp_path, pattern):
    config = gemma(sliding_window=SlidingWindow(5, (True, False) * 3, Rope(1e4)))
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    key = "gemma3.attention.sliding_window_pattern"
    write_gguf(file, folder, config, fields={key: pattern})
    check_same(folder, file)


def test_the_query_scale_of_the_largest_gemma_is_its_width_by_heads(tmp_path):
    layers = tuple((i + 1) % 6 != 0 for i in range(62))
    config = gemma(
        num_layers=62,
        sliding_window=SlidingWindow(5, layers, Rope(1e4)),
        query_scale=8**-0.5,
    )
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config)
    assert load(file)[1].query_scale == pytest.approx(8**-0.5)


@pytest.mark.parametrize("max_length", [None, 64, 200])
def test_longrope_is_read_from_its_tensors(tmp_path, max_length):
    scaling = LongRopeScaling(LONG, LONGER, 64, 256, 1.2)
    config = small_config(family="phi3", rope=Rope(1e4, 0.75, scaling))
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config)
    check_same(folder, file, max_length=max_length)


@pytest.mark.parametrize(
    "scaling",
    [
        Llama3Scaling(8.0, 1.0, 4.0, 8192.0),
        Llama3Scaling(32.0, 1.0, 4.0, 8192.0),
        Llama3Scaling(8.0, 1.0, 4.0, 64.0),
        Llama3Scaling(4.0, 1.0, 6.5, 300.0),
    ],
)
@pytest.mark.parametrize("head_width", [8, 16, 64, 128])
def test_the_constants_of_llama3_are_found_again(scaling, head_width):
    for theta in (1e4, 5e5):
        if scaling.high != 4.0 and head_width < 64:
            continue  # fewer than two blended pairs do not tell
        plain, scaled = Rope(theta), Rope(theta, scaling=scaling)
        frequencies = inverse_frequencies(scaled, head_width)
        divisors = inverse_frequencies(plain, head_width) / frequencies
        found = llama3_constants(divisors, theta)
        names = (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        )
        again = Rope(theta, scaling=Llama3Scaling(*(found[name] for name in names)))
        np.testing.assert_allclose(
            inverse_frequencies(again, head_width), frequencies, rtol=1e-5
        )
        if scaling.high == 4.0 and head_width >= 64:
            assert again == scaled


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("llama", {"llama.expert_count": 8}, r"llama\.expert_count = 8.*Llama port"),
        ("llama", {"llama.attention.scale": 0.1}, r"llama\.attention\.scale = 0\.1"),
        ("llama", {"llama.attention.causal": False}, r"attention\.causal = False"),
        ("llama", {"llama.rope.scaling.type": "dynamic"}, r"type = dynamic"),
        ("llama", {"llama.logit_scale": 2.0}, r"llama\.logit_scale"),
        ("mistral", {"llama.attention.temperature_scale": 0.1}, "temperature_scale"),
        ("qwen2", {"qwen2.rope.dimension_sections": [4, 4]}, "dimension_sections"),
        ("qwen2", {"qwen2.attention.sliding_window": 9}, r"sliding_window = 9"),
        ("qwen2", {"qwen2.rope.scaling.type": "yarn"}, "original_context_length"),
        ("qwen3", {"qwen3.pooling_type": 3}, r"qwen3\.pooling_type = 3.*Qwen3 port"),
        ("gemma3", {"gemma3.attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"gemma3.vision.block_count": 27}, r"vision\.block_count"),
        (
            "gemma3",
            {"gemma3.attention.sliding_window_pattern": [True]},
            "sliding_window_pattern",
        ),
        ("phi3", {"phi3.rope.scaling.attn_factor": 1.2}, r"attn_factor = 1\.2"),
    ],
)
def test_a_feature_that_nobody_does_is_refused_by_name(tmp_path, name, fields, says):
    config = CASES[name]
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config, fields=fields)
    with pytest.raises(CheckpointError, match=says):
        load(file)


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        ("gemma3", YARN),
        ("qwen2", LongRopeScaling((1.0,) * 4, (2.0,) * 4, 16, 64, 1.0)),
    ],
)
def test_scaling_that_llama_cpp_does_in_another_way_is_refused(tmp_path, name, scaling):
    rope = Rope(1e4, scaling=scaling)
    config = dataclasses.replace(CASES[name], rope=rope)
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config)
    kind = "yarn" if scaling is YARN else "longrope"
    with pytest.raises(CheckpointError, match=rf"rope\.scaling\.type = {kind}"):
        load(file)


def test_fields_that_are_off_or_say_nothing_of_the_numbers_pass(tmp_path):
    config = CASES["llama"]
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    fields = {
        "llama.expert_count": 0,
        "llama.expert_used_count": 2,
        "llama.rope.scaling.finetuned": True,
        "llama.rope.scaling.type": "none",
        "llama.attention.sliding_window": 0,
        "llama.something_new": False,
        "general.finetune": "Instruct",
    }
    write_gguf(file, folder, config, fields=fields)
    check_same(folder, file)


@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe", "phimoe", "gemma2", "llama4"])
def test_relatives_of_the_families_are_refused(tmp_path, arch):
    config = CASES["llama"]
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config)
    content = file.read_bytes()
    old, new = (len(a).to_bytes(8, "little") + a.encode() for a in ("llama", arch))
    file.write_bytes(content.replace(old, new, 1) + bytes(64))
    with pytest.raises(CheckpointError, match=f"'{arch}'.*llama, mistral3, qwen2"):
        load(file)
