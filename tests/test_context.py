"""The context that a model is loaded for: lowered, or raised within LongRoPE's."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_checkpoints import logits, saved
from small_families import READ, WRITTEN

from tsi.errors import ConfigurationError, PromptTooLongError
from tsi.models.decoder import RewardModel
from tsi.models.loading.checkpoint import load

TOKENS = np.arange(12).reshape(1, 12)
STRETCHED_AT_24 = READ["phi3 with LongRoPE"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("context")
    plain, stretched = WRITTEN["llama"], STRETCHED_AT_24
    return saved(root / "plain", plain), saved(root / "stretched", stretched)


def test_the_context_of_any_family_may_be_lowered(folders):
    folder, _ = folders
    model, config = load(folder, max_length=20)
    assert model.config == config
    assert config == dataclasses.replace(WRITTEN["llama"], max_length=20)
    np.testing.assert_array_equal(
        logits(model, TOKENS), logits(load(folder)[0], TOKENS)
    )


@pytest.mark.parametrize("max_length", [0, -1, 65])
@pytest.mark.parametrize("which", [0, 1])
def test_a_context_beyond_the_configuration_is_refused(folders, which, max_length):
    folder = folders[which]
    with pytest.raises(ConfigurationError, match="a context of up to 64 tokens"):
        load(folder, max_length=max_length)


def test_nothing_is_read_of_a_model_whose_context_is_refused(folders, monkeypatch):
    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("tsi.models.loading.checkpoint.place", read)
    with pytest.raises(ConfigurationError):
        load(folders[1], max_length=65)


def test_the_divisors_of_longrope_go_by_the_context_and_not_by_the_text(folders):
    _, folder = folders
    default, config = load(folder)
    assert config.max_length == 24
    short = logits(default, TOKENS)
    lowered, original = load(folder, max_length=12), load(folder, max_length=24)
    np.testing.assert_array_equal(logits(lowered[0], TOKENS), short)
    np.testing.assert_array_equal(logits(original[0], TOKENS), short)
    long = logits(load(folder, max_length=25)[0], TOKENS)
    assert np.abs(long - short).max() > 0.01
    most = logits(load(folder, max_length=64)[0], TOKENS)
    np.testing.assert_array_equal(most, long)


def test_a_text_beyond_the_length_in_use_is_refused_where_its_angles_would_differ(
    folders,
):
    plain, stretched = folders
    tokens = jnp.resize(TOKENS, (1, 25))
    for refused in (load(stretched)[0], RewardModel(STRETCHED_AT_24, rngs=nnx.Rngs(0))):
        with pytest.raises(PromptTooLongError, match=r"25 tokens.* loaded for 24.*=25"):
            refused(tokens)
    load(stretched, max_length=25)[0](tokens)
    # Plain angles are the same at any length, as they are to transformers.
    load(plain, max_length=16)[0](tokens)
