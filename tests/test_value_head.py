"""A value head's file: what is read is what was written, and damage is named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tsi.errors import CheckpointError, ConfigurationError
from tsi.models.heads import ValueHead
from tsi.models.loading.value_head import BIAS, WEIGHT, load_value_head, save_value_head

WIDTH = 6
RNG = np.random.default_rng(0)
GOOD = {
    "v_head.summary.weight": RNG.standard_normal((1, WIDTH)).astype(np.float32),
    "v_head.summary.bias": np.float32([0.25]),
}


def test_a_head_survives_its_file_under_the_released_names(tmp_path):
    head = ValueHead(WIDTH, rngs=nnx.Rngs(3))
    head.summary.bias[...] = jnp.float32([0.5])
    path = tmp_path / "new" / "head.safetensors"
    save_value_head(head, path)
    assert load_file(path).keys() == GOOD.keys() == {WEIGHT, BIAS}
    loaded = load_value_head(path, WIDTH)
    hidden = jnp.asarray(RNG.standard_normal((2, 3, WIDTH)), jnp.float32)
    np.testing.assert_array_equal(loaded.log_odds(hidden), head.log_odds(hidden))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_of_another_library_is_read_in_float32(tmp_path, dtype):
    tensors = {name: value.astype(dtype) for name, value in GOOD.items()}
    save_file(tensors, tmp_path / "head")
    head = load_value_head(tmp_path / "head", WIDTH)
    hidden = RNG.standard_normal((4, WIDTH)).astype(np.float32)
    weight, bias = (tensors[name].astype(np.float64) for name in (WEIGHT, BIAS))
    found = head.log_odds(jnp.asarray(hidden))
    assert found.dtype == head.summary.kernel[...].dtype == jnp.float32
    np.testing.assert_allclose(found, hidden @ weight[0] + bias[0], rtol=1e-5)


def test_a_head_of_another_width_is_refused(tmp_path):
    save_file(GOOD, tmp_path / "head")
    with pytest.raises(ConfigurationError, match="width 6, and the policy's have"):
        load_value_head(tmp_path / "head", WIDTH + 1)


NOT_FINITE = GOOD[WEIGHT].astype(np.float64)
NOT_FINITE[0, 2] = 1e300


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({BIAS: None}, "holds 1 tensors"),
        ({"lm_head.weight": np.ones((2, 2), np.float32)}, "holds 3 tensors"),
        ({WEIGHT: np.ones((2, WIDTH), np.float32)}, "one output"),
        ({WEIGHT: np.ones(WIDTH, np.float32)}, "one output"),
        ({WEIGHT: np.ones((1, 0), np.float32)}, "one output"),
        ({BIAS: np.ones((1, 1), np.float32)}, "one output"),
        ({BIAS: np.ones(1, np.int32)}, "type I32, supported are F64"),
        ({WEIGHT: NOT_FINITE}, "not finite in float32"),
        ({BIAS: np.float32([np.nan])}, "not finite in float32"),
    ],
)
def test_what_is_no_value_head_is_refused(tmp_path, changes, sentence):
    tensors = {n: t for n, t in (GOOD | changes).items() if t is not None}
    save_file(tensors, tmp_path / "head")
    with pytest.raises(CheckpointError, match=sentence):
        load_value_head(tmp_path / "head", WIDTH)


def test_metadata_that_contradict_the_shape_are_refused(tmp_path):
    save_file(GOOD, tmp_path / "head", metadata={"width": "7"})
    with pytest.raises(CheckpointError, match="metadata states the width '7'"):
        load_value_head(tmp_path / "head", WIDTH)


def test_no_cut_and_no_lie_about_sizes_gets_beyond_an_error(tmp_path):
    path = tmp_path / "head"
    with pytest.raises(CheckpointError, match="no value head at"):
        load_value_head(path, WIDTH)
    save_file(GOOD, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            load_value_head(path, WIDTH)
    # A header that claims more than the file has: refused, not allocated.
    entries = {
        WEIGHT: {"dtype": "F32", "shape": [1, 2**40], "data_offsets": [0, 2**42]},
        BIAS: {"dtype": "F32", "shape": [1], "data_offsets": [2**42, 2**42 + 4]},
    }
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_value_head(path, 2**40)
