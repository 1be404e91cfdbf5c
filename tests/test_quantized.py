"""Weights in 8 and 4 bits: how far off, how small, and in every place that has some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny
from flax import nnx

from tsi import samplers
from tsi.errors import ConfigurationError
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.models import heads
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.loading.checkpoint import load, save
from tsi.models.partition import memory
from tsi.models.quantized import matrix_of, quantize, quantize_matrix

CONFIG = tiny.config(width=64, hidden=96, num_layers=3, head_width=16)
TOKENS = jnp.asarray([tiny.encode("hellobadgem")])
KINDS = pytest.mark.parametrize("kind", ["int8", "int4"])


def model_of(make=LanguageModel, **changes):
    config = tiny.config(**{**CONFIG.__dict__, **changes})
    return make(config, rngs=nnx.Rngs(0))


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_weight_is_off_by_no_more_than_its_grid(kind, dtype):
    matrix = jax.random.normal(jax.random.key(0), (64, 5)).astype(dtype)
    matrix = matrix.at[:, 3].set(0.0)
    kernel, scale = quantize_matrix(matrix, kind)
    again = matrix_of(kernel, scale, jnp.float32)
    error = np.abs(again - matrix.astype(jnp.float32))
    step = np.abs(np.asarray(scale, np.float32))
    if kind == "int8":
        assert kernel.nbytes == 64 * 5
        assert np.all(error <= step * 0.501)
    else:
        assert kernel.nbytes == 64 * 5 / 2
        step = np.repeat(step, 32, axis=0)
        # Half a step, but for what lies opposite of the largest.
        assert np.all(error <= step * 1.02)
        assert np.mean(error <= step * 0.54) > 0.95
    assert not np.any(error[:, 3])
    assert np.abs(error).max() > 0


def widened(model, of):
    """The model `of` with the weights that a model in few bits stands for."""
    flat = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    plain = nnx.clone(of)
    for keys, leaf in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
        value = flat[keys][...]
        scale = flat.get((*keys[:-1], f"{keys[-1]}_scale"))
        if scale is not None and keys[-1] == "embedding":
            value = value.astype(jnp.float32) * scale[...][:, None]
        elif scale is not None:
            widen = lambda *x: matrix_of(*x, jnp.float32)  # noqa: E731
            widen = jax.vmap(widen) if value.ndim == 3 else widen
            value = widen(value, scale[...])
        assert value.dtype == jnp.float32
        leaf.set_value(value)
    return plain


MODELS = {
    "tied": model_of(),
    "head": model_of(tied=False, attention_bias=True, output_bias=True),
    "reward": model_of(RewardModel, num_labels=2),
    "process": model_of(heads.ProcessScorer, num_labels=2),
}
BOUNDS = {"int8": 0.1, "int4": 0.6}


@pytest.mark.long
@KINDS
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_few_bits_computes_what_its_weights_stand_for(kind, name):
    model = MODELS[name]
    few = quantize(model, kind)
    plain = widened(few, model)
    assert memory(model).total > 3 * memory(few).total / 2
    np.testing.assert_allclose(few(TOKENS), plain(TOKENS), atol=1e-4)
    if name in ("tied", "head"):
        hidden = jax.random.normal(jax.random.key(1), (2, 64))
        odds = [heads.token_log_odds(x, hidden, 3, 4) for x in (few, plain)]
        np.testing.assert_allclose(*odds, atol=1e-5)
    # And that is near to what the model computed.
    found, expected = few(TOKENS), model(TOKENS)
    error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
    # One score is more off than many logits are together.
    most = {"int8": 0.02, "int4": 0.25} if name in ("tied", "head") else BOUNDS
    assert 0.001 < error < most[kind]


@pytest.mark.long
@KINDS
def test_memory_is_a_quarter_and_an_eighth_of_float32(kind):
    config = tiny.config(width=256, hidden=512, num_layers=4, tied=False)
    model = LanguageModel(config, rngs=nnx.Rngs(0))
    share = memory(quantize(model, kind)).total / memory(model).total
    bits = 8 if kind == "int8" else 4.5
    assert bits / 32 < share < bits / 32 + 0.02


@pytest.mark.long
@KINDS
def test_loading_quantizes_as_it_reads(kind, tmp_path):
    model = MODELS["head"]
    save(model, model.config, tmp_path)
    loaded, _ = load(tmp_path, weights=kind)
    expected = nnx.state(quantize(model, kind), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded, nnx.Param), expected)
    with pytest.raises(ConfigurationError, match="no checkpoint format"):
        save(loaded, model.config, tmp_path)
    with pytest.raises(ConfigurationError, match="quantised already"):
        quantize(loaded, kind)
    with pytest.raises(ConfigurationError, match=r"is 'int2'.*choose one of int8"):
        load(tmp_path, weights="int2")


def test_a_world_keeps_weights_and_caches_as_asked():
    world = embedded_world("chain", 2, weights="int8", cache_dtype="bfloat16")
    plain = embedded_world("chain", 2)
    for name in ("policy", "reward_model"):
        few, whole = (getattr(x.engine, name) for x in (world, plain))
        assert memory(few).total < 0.3 * memory(whole).total
        assert few.trunk.cache_dtype == jnp.bfloat16
    assert world.settings["weights"] == "int8"
    assert world.settings["cache_dtype"] == "bfloat16"
    assert not {"weights", "cache_dtype"} & plain.settings.keys()


@pytest.mark.long
def test_the_engine_runs_models_in_few_bits():
    policy, reward = tiny.models()
    engine = test_engine.Engine(
        tiny.target(),
        quantize(policy, "int8"),
        quantize(reward, "int4"),
        encode=tiny.encode,
        decode=tiny.decode,
    )
    (result,) = engine.run(
        samplers.smc(),
        jax.random.key(0),
        test_engine.PROBLEMS[:1],
        4,
        extract=test_engine.extract,
    )
    assert np.isfinite(result.log_evidence)
