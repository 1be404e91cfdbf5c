"""The loader gives back what was saved, and refuses everything else in a sentence."""

import json
import shutil
import struct
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_checkpoints import (
    logits,
    parameters,
    saved,
    small_config,
    small_model,
)

from tsi.errors import CheckpointError
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.loading.checkpoint import load, save
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.rotary import Llama3Scaling, Rope
from tsi.models.tensors import safetensors
from tsi.models.tokens.char_tokenizer import char_tokenizer

TOKENS = np.arange(14).reshape(2, 7) % 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), small_config())


FIRST = ("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight")


def write_shards(folder, tensors, first):
    """Two shards in the place of one file; ``first`` says what lies in a."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    where = {n: f"{'a' if first[n] else 'b'}.safetensors" for n in tensors}
    for file in set(where.values()):
        own = {name: t for name, t in tensors.items() if where[name] == file}
        save_file(own, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return index


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reward", [False, True])
def test_a_loaded_model_is_the_saved_one_bit_for_bit(tmp_path, tied, reward):
    config = small_config(
        tied=tied,
        rope=Rope(scaling=Llama3Scaling(8.0, 1.0, 4.0, 32.0)),
        head_width=6,
        eos_ids=(1, 3),
    )
    model = small_model(config, reward=reward)
    save(model, config, tmp_path)
    loaded, read_config = load(tmp_path)
    assert read_config == config
    assert type(loaded) is (RewardModel if reward else LanguageModel)
    before, after = parameters(model), parameters(loaded)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    np.testing.assert_array_equal(logits(model, TOKENS), logits(loaded, TOKENS))


def test_the_reward_head_is_saved_as_a_token_classifier(tmp_path):
    config = small_config()
    save(small_model(config, reward=True), config, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForTokenClassification"]
    assert fields["num_labels"] == 1
    shapes = {k: v.shape for k, v in load_file(tmp_path / "model.safetensors").items()}
    assert shapes["score.weight"] == (1, 32)
    assert shapes["score.bias"] == (1,)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_disk_loads_in_any_precision(tmp_path, dtype):
    config = small_config()
    model = small_model(config)
    save(model, config, tmp_path, dtype=dtype)
    loaded, _ = load(tmp_path)
    same, _ = load(tmp_path, dtype=dtype)
    for name, value in parameters(model).items():
        rounded = value.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        np.testing.assert_array_equal(
            parameters(loaded)[name], rounded.astype(np.float32)
        )
        np.testing.assert_array_equal(parameters(same)[name], rounded)
    assert parameters(loaded)["trunk.embedding"].dtype == jnp.float32


def test_shards_load_like_one_file(folder, copy):
    tensors = load_file(copy / "model.safetensors")
    index = write_shards(copy, tensors, {name: name in FIRST for name in tensors})
    one, shards = parameters(load(folder)[0]), parameters(load(copy)[0])
    assert all(np.array_equal(one[name], shards[name]) for name in one)

    (copy / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not in the folder: b\.safetensors"):
        load(copy)
    index.write_text(json.dumps({"weight_map": {"x": "../copy/a.safetensors"}}))
    with pytest.raises(CheckpointError, match="not in the folder"):
        load(copy)
    index.write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(CheckpointError, match="no weight_map"):
        load(copy)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[NORM].__setitem__(3, np.nan), f"{NORM} has values .* not finite"),
        (lambda t: t.update({NORM: np.ones(7, "f4")}), f"shape: {NORM} in {{}} is"),
        (lambda t: t.update({NORM: np.ones(32, "i4")}), f"type: {NORM} in {{}} is I32"),
        (lambda t: t.update(odd=np.ones(3, "f4")), "extra: odd in {}"),
    ],
    ids=["value", "shape", "type", "extra"],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_wrong_with_a_tensor_is_said_with_its_shard(copy, change, says, first):
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    write_shards(copy, tensors, {n: (n in (NORM, "odd")) == first for n in tensors})
    right, other = ("a", "b") if first else ("b", "a")
    with pytest.raises(CheckpointError, match=says.format(f"{right}.safetensors")) as e:
        load(copy)
    assert f"{right}.safetensors" in str(e.value)
    assert f"{other}.safetensors" not in str(e.value)


def test_a_tensor_in_two_shards_is_said_with_both(copy):
    tensors = load_file(copy / "model.safetensors")
    write_shards(copy, tensors, dict.fromkeys(tensors, True) | {NORM: False})
    save_file(tensors, copy / "a.safetensors")
    says = r"b\.safetensors holds .* model\.norm\.weight, and so does a\.safetensors"
    with pytest.raises(CheckpointError, match=says):
        load(copy)


def test_one_error_lists_all_missing_extra_and_wrongly_shaped_tensors(copy):
    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["visual.patch"] = np.zeros(3, np.float32)
        tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((32, 16), "f4")

    edit_tensors(copy, change)
    with pytest.raises(CheckpointError) as caught:
        load(copy)
    text = str(caught.value)
    assert str(copy) in text
    assert "5 of its tensors" in text
    assert "missing: model.layers.1.mlp.up_proj.weight" in text
    assert "missing: model.norm.weight" in text
    assert "extra: model.layers.7.mlp.up_proj.weight" in text
    assert "extra: visual.patch" in text
    assert (
        "shape: model.layers.0.self_attn.k_proj.weight in model.safetensors is "
        "[32, 16], the configuration says [16, 32]" in text
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "Supported: LlamaForCausalLM"),
        ({"architectures": None}, "Supported: LlamaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "X"]}, "Supported: LlamaForCausalLM"),
        ({"attention_bias": True}, r"missing: model.layers.2.self_attn.o_proj.bias"),
        ({"mlp_bias": True}, r"missing: model.layers.0.mlp.down_proj.bias"),
        ({"lm_head_bias": True}, "lm_head_bias=True"),
        ({"hidden_act": "relu2"}, "hidden_act='relu2'"),
        ({"rope_parameters": {"rope_type": "ntk"}}, "rotary scaling 'ntk'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"hidden_size": 2**40}, "under 2\\^31"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        (
            {"rms_norm_eps": "small"},
            "='small', which is not a positive number",
        ),
        ({"rope_parameters": [1]}, "not a table of fields"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "is not even"),
        ({"rms_norm_eps": -1.0}, "not a positive number"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "not a positive number"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"num_hidden_layers": 10**9}, "too few for the 1000000000 layers"),
        ({"intermediate_size": 2**31 - 1}, "wrongly shaped"),
    ],
)
def test_a_configuration_that_the_port_cannot_do_is_refused_by_name(
    copy, changes, says
):
    edit_config(copy, **changes)
    with pytest.raises(CheckpointError, match=says):
        load(copy)


def test_a_missing_configuration_field_is_named(copy):
    path = copy / "config.json"
    fields = json.loads(path.read_text())
    del fields["vocab_size"]
    path.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="lacks the field 'vocab_size'"):
        load(copy)


def test_one_error_lists_all_misfits_whatever_they_are(copy):
    """Fewer tensors than layers, and a head that contradicts a tied embedding."""
    edit_config(copy, num_hidden_layers=9, tie_word_embeddings=True)

    def change(tensors):
        embedding = tensors["model.embed_tokens.weight"]
        kept = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding + 1}
        norm = "model.layers.0.input_layernorm.weight"
        kept[norm] = tensors[norm].astype(np.int32)
        tensors.clear()
        tensors.update(kept, odd=embedding)

    edit_tensors(copy, change)
    with pytest.raises(CheckpointError) as caught:
        load(copy)
    for part in (
        "missing: model.norm.weight",
        "missing: model.layers.8.mlp.up_proj.weight",
        "extra: odd",
        "type: model.layers.0.input_layernorm.weight in model.safetensors is I32",
        "contradiction: lm_head.weight in model.safetensors differs",
    ):
        assert part in str(caught.value)


def test_pickled_weights_are_never_read_and_the_error_says_how_to_convert(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*save_pretrained"):
        load(copy)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", r"no config\.json"),
        ("model.safetensors", r"neither model\.safetensors nor"),
        (".", "There is no model at"),
    ],
)
def test_an_absent_file_is_named(copy, missing, says):
    target = copy / missing
    shutil.rmtree(copy) if missing == "." else target.unlink()
    with pytest.raises(CheckpointError, match=says):
        load(copy)


@pytest.mark.parametrize("text", ["{", "[]", "\ud800", "[" * 100_000])
def test_a_configuration_that_is_not_a_json_object_is_refused(copy, text):
    (copy / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(copy)


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 1000) + b"{}",
        safetensors_bytes(b"{{{{"),
        safetensors_bytes(
            {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}
        ),
        safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
        ),
        safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]}},
            b"\0" * 4,
        ),
        safetensors_bytes(
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8
        ),
    ],
    ids=str,
)
def test_a_malformed_safetensors_file_is_refused(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file"):
        load(copy)


@pytest.mark.parametrize(
    "offsets", [[0, 4096], [0, 100], [-128, 0], [10**9, 10**9 + 128]], ids=str
)
def test_offsets_are_checked_again_before_the_file_is_viewed(
    copy, offsets, monkeypatch
):
    """Even if the package's own check of the header let them through."""

    class Trusting:
        def __init__(self, path, framework):
            content = Path(path).read_bytes()
            (size,) = struct.unpack("<Q", content[:8])
            self.keys = json.loads(content[8 : 8 + size]).keys

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    entry = {"dtype": "F32", "shape": [32], "data_offsets": offsets}
    content = safetensors_bytes({"model.norm.weight": entry}, b"\0" * 128)
    (copy / "model.safetensors").write_bytes(content)
    monkeypatch.setattr(safetensors, "safe_open", Trusting)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight should lie at"):
        load(copy)


def test_integer_tensors_are_not_weights(copy):
    edit_tensors(copy, lambda t: t.update(qweight=np.zeros((4, 4), np.int32)))
    with pytest.raises(CheckpointError, match=r"qweight in model\.safetensors is I32"):
        load(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(copy, value):
    edit_tensors(copy, lambda t: t["model.norm.weight"].__setitem__(3, value))
    says = r"model\.norm\.weight.*not finite in float32\. Download the file again\.$"
    with pytest.raises(CheckpointError, match=says):
        load(copy)


def test_weights_too_large_for_the_type_in_memory_are_refused(copy):
    edit_tensors(copy, lambda t: t["model.norm.weight"].__setitem__(3, 1e6))
    load(copy)
    says = "not finite in float16.*, or load it in float32"
    with pytest.raises(CheckpointError, match=says):
        load(copy, dtype=jnp.float16)


def test_a_head_that_repeats_the_tied_embedding_is_accepted_and_another_refused(copy):
    embedding = load_file(copy / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(copy, lambda t: t.update({"lm_head.weight": embedding.copy()}))
    load(copy)
    edit_tensors(copy, lambda t: t.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load(copy)


def test_rotary_tables_of_old_releases_are_ignored(copy):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(copy, lambda t: t.update({name: np.ones(4, np.float32)}))
    load(copy)


def test_a_tokenizer_is_saved_beside_the_weights(tmp_path):
    config = small_config()
    tokenizer = char_tokenizer("0123456789+=\n ")
    save(small_model(config), config, tmp_path, tokenizer=tokenizer)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("1+1=\n") == tokenizer.encode("1+1=\n")
    assert (loaded.eos_ids, loaded.pad_id) == ((1,), 0)
