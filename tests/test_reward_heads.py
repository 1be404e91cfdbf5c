"""Heads: what they make of hidden states, and that they survive a save and a load."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from small_checkpoints import parameters, small_config

from tsi.errors import CheckpointError
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.heads import (
    OutcomeScorer,
    ProcessScorer,
    SequenceScorer,
    ValueScorer,
    token_log_odds,
)
from tsi.models.loading import checkpoint

HEADS = [
    (RewardModel, 1, {"score.weight", "score.bias"}),
    (RewardModel, 2, {"score.weight", "score.bias"}),
    (SequenceScorer, 1, {"score.weight"}),
    (SequenceScorer, 2, {"score.weight"}),
    (OutcomeScorer, 1, {f"score.{i}.{k}" for i in "02" for k in ("weight", "bias")}),
    (ProcessScorer, 2, {f"score.{i}.{k}" for i in "02" for k in ("weight", "bias")}),
    (ValueScorer, 1, {"v_head.summary.weight", "v_head.summary.bias"}),
]
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((3, 32)).astype(np.float32)


def scorer(kind, labels: int, family: str = "qwen2"):
    """A model with a head whose biases are random, and the configuration as read."""
    bias = family == "qwen2"
    config = small_config(num_labels=labels, family=family, attention_bias=bias)
    model = kind(config, rngs=nnx.Rngs(0))
    for name, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if "bias" in name:
            leaf[...] = leaf[...] + RNG.standard_normal(leaf[...].shape)
    return model, config


@pytest.mark.parametrize(("kind", "labels", "names"), HEADS)
def test_a_head_is_saved_under_its_released_names_and_loaded(
    kind, labels, names, tmp_path
):
    model, config = scorer(kind, labels)
    checkpoint.save(model, config, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {n for n in tensors if not n.startswith("model.")} == names
    loaded, read = checkpoint.load(tmp_path)
    assert type(loaded) is kind
    assert read.num_labels == labels
    saved = parameters(model)
    for name, value in parameters(loaded).items():
        np.testing.assert_array_equal(value, saved[name], err_msg=name)

    # The log-odds by hand, from the tensors as they are on disk.
    if "score.0.weight" in names:
        inner = HIDDEN @ tensors["score.0.weight"].T + tensors["score.0.bias"]
        inner = np.maximum(inner, 0)
        out = inner @ tensors["score.2.weight"].T + tensors["score.2.bias"]
    else:
        weight = next(tensors[n] for n in names if n.endswith("weight"))
        bias = next((tensors[n] for n in names if n.endswith("bias")), 0.0)
        out = HIDDEN @ weight.T + bias
    expected = out[:, 0] if labels == 1 else out[:, 1] - out[:, 0]
    found = loaded.log_odds(jnp.asarray(HIDDEN))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "qwen3"])
def test_families_share_the_heads(family, tmp_path):
    config = small_config(family=family, query_key_norm=family == "qwen3")
    model = SequenceScorer(config, rngs=nnx.Rngs(0))
    checkpoint.save(model, config, tmp_path)
    loaded, read = checkpoint.load(tmp_path)
    assert (type(loaded), read.family) == (SequenceScorer, family)
    saved = parameters(model)
    for name, value in parameters(loaded).items():
        np.testing.assert_array_equal(value, saved[name], err_msg=name)


def edit(folder, **changes) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def test_a_vocabulary_head_beside_a_value_head_is_left_alone(tmp_path):
    model, config = scorer(ValueScorer, 1)
    checkpoint.save(model, config, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = np.ones((40, 32), np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    loaded, _ = checkpoint.load(tmp_path)
    assert type(loaded) is ValueScorer


def test_two_labels_are_what_a_configuration_without_a_number_means(tmp_path):
    model, config = scorer(RewardModel, 2)
    checkpoint.save(model, config, tmp_path)
    edit(tmp_path, num_labels=None)
    assert checkpoint.load(tmp_path)[1].num_labels == 2
    edit(tmp_path, id2label={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(CheckpointError, match="has 3 labels, not 1 or 2"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_two_tokens_are_compared_without_the_rest_of_the_vocabulary(tied):
    config = small_config(tied=tied, logit_softcap=3.0)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    logits = model.logits(jnp.asarray(HIDDEN))
    found = token_log_odds(model, jnp.asarray(HIDDEN), 7, 11)
    np.testing.assert_allclose(found, logits[:, 7] - logits[:, 11], rtol=1e-5)
