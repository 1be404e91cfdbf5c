"""Attention by a kernel, in Pallas's interpreter, beside the plain operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny
from flax import nnx
from jax import export

from tsi import samplers
from tsi.engine.engine import Engine
from tsi.errors import ConfigurationError
from tsi.models import decode_kernel
from tsi.models.attention import View, attend_part
from tsi.models.decode_kernel import attend_first_positions, block_of, splits_of
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import SlidingWindow
from tsi.models.partition import make_mesh

KEY = jax.random.key(2)


@pytest.mark.parametrize(
    ("rows", "heads", "group", "width", "size", "dtype"),
    [
        (4, 3, 3, 64, 256, "float32"),
        (3, 2, 1, 16, 96, "float32"),
        (3, 1, 20, 32, 48, "float32"),
        (3, 2, 7, 128, 640, "float32"),
        (3, 2, 4, 64, 128, "bfloat16"),
    ],
)
def test_the_kernel_gives_what_plain_operations_give(
    rows, heads, group, width, size, dtype
):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    queries = draw(rows, heads, group, width) * width**-0.5
    keys, values = draw(rows, heads, size, width), draw(rows, heads, size, width)
    # A row without any position, one that is full, and others.
    lengths = rng.integers(1, size, rows)
    lengths[:2] = 0, size
    lengths = jnp.asarray(lengths, jnp.int32)
    peak, total, mixed = jax.jit(attend_first_positions)(queries, keys, values, lengths)
    mask = (jnp.arange(size) < lengths[:, None])[:, None, None, None, None, :]
    plain = attend_part(queries[:, None], jnp.swapaxes(keys, 2, 3), values, View(mask))
    tolerance = 2e-6 if dtype == "float32" else 2e-2
    expected = (plain.mixed / plain.total[..., None])[1:, 0]
    np.testing.assert_allclose((mixed / total[..., None])[1:], expected, atol=tolerance)
    np.testing.assert_allclose(
        (peak + jnp.log(total))[1:],
        (plain.peak + jnp.log(plain.total))[1:, 0],
        atol=tolerance,
    )
    # The empty part has no weight when parts are merged.
    assert not np.asarray(total[0]).any()
    assert not np.asarray(mixed[0]).any()
    assert np.isfinite(peak).all()


@pytest.mark.parametrize("size", [16, 48, 96, 128, 384, 640, 4096, 8192 + 128])
def test_caches_are_divided_into_whole_blocks(size):
    block, splits = block_of(size), splits_of(size)
    assert 16 <= block <= 128
    assert size % (block * splits) == 0
    assert size // splits >= 16
    assert block_of(8) == block_of(100) == 0


@pytest.mark.parametrize(
    ("heads", "group", "width", "size", "dtype"),
    [(3, 3, 64, 256, "float32"), (8, 4, 128, 2048, "bfloat16")],
)
def test_the_kernel_is_lowered_for_a_gpu(monkeypatch, heads, group, width, size, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct((16, *sizes), dtype)

    target = "__gpu$xla.gpu.triton"
    exported = export.export(
        jax.jit(attend_first_positions),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(target)],
    )(
        shape(heads, group, width),
        shape(heads, size, width),
        shape(heads, size, width),
        shape(dtype="int32"),
    )
    assert target in exported.mlir_module()


@functools.cache
def policy():
    """One whose heads are wide enough."""
    return LanguageModel(tiny.config(head_width=16), rngs=nnx.Rngs(0))


def engine(**changes):
    _, reward = tiny.models()
    target = tiny.target(max_tokens=40, max_steps=10)
    arguments = {"encode": tiny.encode, "decode": tiny.decode, "max_rows": 8}
    return Engine(target, policy(), reward, **(arguments | changes))


@pytest.mark.long
@pytest.mark.parametrize("name", ["smc", "mcts"])
def test_samples_are_those_of_plain_attention(name, monkeypatch):
    sizes = []
    name_in_use = "tsi.models.attention.attend_first_positions"

    def watch(queries, keys, *rest):
        sizes.append(keys.shape)
        return attend_first_positions(queries, keys, *rest)

    monkeypatch.setattr(name_in_use, watch)
    results = []
    for attention in ("plain", "kernel"):
        assert not sizes
        runner = engine(attention=attention)
        results.append(
            runner.run(
                getattr(samplers, name)(),
                KEY,
                test_engine.PROBLEMS[:3],
                8,
                extract=test_engine.extract,
            )
        )
    assert sizes
    for left, right in zip(*results, strict=True):
        test_engine.same(left, right)


def test_what_the_kernel_cannot_do_is_refused(monkeypatch):
    narrow, _ = tiny.models()
    window = SlidingWindow(4, tiny.config().rope, (True, False))
    changes = {
        "width of the heads is 8": narrow.config,
        "window of positions": tiny.config(head_width=16, sliding_window=window),
        "caps its attention": tiny.config(head_width=16, attention_softcap=30.0),
    }
    for message, config in changes.items():
        with pytest.raises(ConfigurationError, match=message):
            decode_kernel.check_kernel(config, None, None, "float32")
    with pytest.raises(ConfigurationError, match="keys and values are in bfloat16"):
        engine(attention="kernel", cache_dtype="bfloat16")
    wide = tiny.config(head_width=16)
    decode_kernel.check_kernel(wide, make_mesh(1, 1), "float32", "float32")
    with jax.enable_x64(True), pytest.raises(ConfigurationError, match="x64"):
        decode_kernel.check_kernel(wide, None, None, "float32")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ConfigurationError, match="no such kernel for tpu"):
        decode_kernel.check_kernel(wide, None, None, "float32")
