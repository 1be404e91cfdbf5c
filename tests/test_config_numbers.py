"""Numbers of a configuration count as they are: zero is no wish for the default."""

import json
import math
from pathlib import Path

import pytest
from family_configs import family_configs
from small_checkpoints import saved, small_config, write_gguf

from tsi.errors import CheckpointError
from tsi.models.families.architectures import architecture_of
from tsi.models.families.config_fields import write_fields
from tsi.models.gguf.config import config_fields
from tsi.models.gguf.file import read_header
from tsi.models.loading.checkpoint import load

FIELDS = write_fields(small_config(), "llama") | {"architectures": ["LlamaForCausalLM"]}
SCORER = "LlamaForSequenceClassification"
DIVISORS = [1.0] * (small_config().head_width // 2)
ODD = {
    "zero": 0,
    "minus one": -1,
    "not a number": math.nan,
    "infinite": math.inf,
    "beyond float32": 1e300,
    "zero in float32": 1e-300,
    "a text": "10000",
    "false": False,
    "a list": [],
}
NUMBERS = (
    "rope_theta",
    "rms_norm_eps",
    "partial_rotary_factor",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "vocab_size",
)
ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 1.1,
    },
    "longrope": {
        "original_max_position_embeddings": 64,
        "factor": 2.0,
        "attention_factor": 1.1,
        "short_factor": DIVISORS,
        "long_factor": DIVISORS,
    },
}


def read(changes, base=FIELDS):
    return architecture_of(Path("folder"), base | changes)[1]


def with_rope(kind, changes):
    parameters = {"rope_type": kind, "rope_theta": 1e4} | ROPES.get(kind, {}) | changes
    return {"rope_parameters": parameters}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", NUMBERS)
def test_an_odd_number_is_not_the_default(name, odd):
    plain = {k: v for k, v in FIELDS.items() if k != "rope_parameters"}
    with pytest.raises(CheckpointError, match=name):
        read({name: ODD[odd]}, plain)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, fields in ROPES.items()
        for name in ["rope_theta", *fields]
    ],
)
def test_an_odd_number_of_a_rotary_embedding_is_not_the_default(kind, name, odd):
    is_list = isinstance(ROPES[kind].get(name), list)
    value = [ODD[odd], *DIVISORS[1:]] if is_list else ODD[odd]
    read(with_rope(kind, {}))
    with pytest.raises(CheckpointError, match=f"folder.*{name}"):
        read(with_rope(kind, {name: value}))


@pytest.mark.parametrize("odd", ["zero", "a text", "false", "a list"])
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling", "layer_types"])
def test_a_table_that_is_none_is_not_an_empty_one(name, odd):
    plain = {k: v for k, v in FIELDS.items() if k != "rope_parameters"}
    if (name, odd) == ("layer_types", "a list"):
        pytest.skip("a list of no layers is left to the families")
    with pytest.raises(CheckpointError, match=name):
        read({name: ODD[odd]}, plain)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_theta": 1.0, "rope_parameters": None}, "rope_theta=1"),
        ({"rope_theta": 0.5, "rope_parameters": None}, "above 1"),
        (with_rope("llama3", {"low_freq_factor": 4.0}), "the second must be larger"),
        (with_rope("yarn", {"mscale": -1.0, "mscale_all_dim": 1.0}), "mscale=-1"),
        (with_rope("yarn", {"truncate": "no"}), "truncate='no'"),
        ({"rms_norm_eps": 1.0}, "dominate the mean square"),
        ({"eos_token_id": False}, "eos_token_id is False"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": [2, 2**31]}, "eos_token_id is"),
        ({"eos_token_id": ""}, "eos_token_id is ''"),
        (
            {"architectures": ["LlamaForSequenceClassification"], "num_labels": 0},
            "0 la",
        ),
        (
            {"architectures": ["LlamaForTokenClassification"], "id2label": {}},
            "0 labels",
        ),
    ],
)
def test_numbers_that_contradict_the_model_are_refused(changes, says):
    with pytest.raises(CheckpointError, match=says):
        read(changes)


@pytest.mark.parametrize("family", ["mistral", "phi3", "gemma3"])
@pytest.mark.parametrize("odd", [k for k in ODD if k != "zero"])
def test_an_odd_window_is_not_no_window(family, odd, tmp_path):
    folder = saved(tmp_path, family_configs()[family])
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(fields | {"sliding_window": ODD[odd]})
    )
    with pytest.raises(CheckpointError, match="window"):
        load(folder)


def test_null_is_the_default():
    nothing = dict.fromkeys(["rope_theta", "rope_parameters", "rms_norm_eps"])
    config = read(nothing)
    assert (config.rope.theta, config.norm_epsilon) == (10_000.0, 1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope.freq_base", 0.0),
        ("rope.freq_base", -1.0),
        ("rope.freq_base", math.nan),
        ("rope.scaling.factor", 0.0),
        ("rope.scaling.factor", -2.0),
        ("rope.scaling.factor", math.inf),
        ("rope.scale_linear", 0.0),
        ("attention.layer_norm_rms_epsilon", 0.0),
    ],
)
def test_an_odd_number_of_a_gguf_is_not_the_default(name, value, tmp_path):
    folder = saved(tmp_path / "hf", small_config())
    file = tmp_path / "model.gguf"
    write_gguf(file, folder, small_config())
    header = read_header(file)
    header.metadata[f"llama.{name}"] = value
    with pytest.raises(CheckpointError, match=r"rope|rms_norm_eps"):
        architecture_of(file, config_fields(header))
