"""A published 4-bit file means here what it means to llama.cpp, token for token.

Needs llama-cpp-python and SmolLM2-135M from its wheel (Q4_1, the embedding Q8_0). The
file is read as it is. Ours are greedy continuations of ten prompts by 64 tokens, drawn
with a cache; llama.cpp reads each and says what it would have taken at every position:
where all choices are equal, so is its own greedy path.

llama.cpp rounds more than the weights: where a matrix product has fewer than 32 rows,
and always without a BLAS, it rounds activations to eight bits, 32 at a time. With
float32 products both agree on the same file; with rounded ones nobody agrees who is not
equal bit for bit, llama.cpp with itself included, since a difference of 1e-7 before a
rounding may be one of 1e-2 after it. Measured, logits having a deviation of 7.3:

==============================================  =======  ======  ================
                                                largest  mean    equal choices of
logits compared                                 diff.    diff.   640
==============================================  =======  ======  ================
ours, llama.cpp's with BLAS                     1.3e-4   1.1e-5  640
ours, llama.cpp's of the file it dequantised    1.3e-4   1.1e-5  640
ours, llama.cpp's with 8-bit activations        2.0      0.187   626
the same, ours rounding activations as well     2.5      0.196   626
llama.cpp's 8-bit, flash attention on, and off  2.0      0.196   621
==============================================  =======  ======  ================

Where choices differ, neither loses more than 0.3 by the other's. So at eight bits the
products are judged one by one, on llama.cpp's own activations: all 211 equal ours of
the rounded activations to 3e-5 of their deviation (0.05 if unrounded, in the median).

For BLAS build it in (``CMAKE_ARGS="-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS"``) or
name a libggml-blas.so of the same version in GGML_BACKEND_PATH.

References: quantize_row_q8_0 and quantize_row_q8_1 in ggml/src/ggml-cpu/arch,
supports_op in ggml/src/ggml-blas/ggml-blas.cpp.
"""

import ctypes
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_checkpoints import permute
from test_llama_cpp import converted, theirs

from tsi.decoding.decode_step import empty_key_values
from tsi.models.attention import Segment
from tsi.models.decoder import KeyValues
from tsi.models.gguf.file import read_header
from tsi.models.loading import catalogue
from tsi.models.loading.checkpoint import load
from tsi.models.loading.load_tokenizer import load_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
SMOLLM2 = catalogue.wheel_location(catalogue.SMOLLM2_WHEEL)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SMOLLM2.exists(), reason="smollm2-135m is not in the cache"),
]
PROMPTS = (
    "The capital of France is",
    "What is 12 + 30?",
    "def fibonacci(n):",
    "Once upon a time,",
    "Water boils at",
    "The three laws of",
    "import numpy as np\n",
    "In 1969, the first",
    "A triangle has sides 3, 4 and",
    "My favourite food",
)
NEW = 64
WIDTH = 80
EIGHT_BIT = 16
"""Rows that llama.cpp multiplies at a time: fewer than a BLAS would take."""


class Path(NamedTuple):
    """A prompt of ``start`` tokens, our continuation, and our logits along both."""

    start: int
    ids: list[int]
    logits: np.ndarray


@jax.jit
def continued(model, prompts, lengths):
    """Greedy continuations, one token at a time, ``[R, WIDTH]``."""
    rows = prompts.shape[0]

    def step(carry, at):
        cache, chosen = carry
        token = jnp.where(at < lengths, prompts[:, at], chosen)
        mask = jnp.broadcast_to(jnp.arange(WIDTH) < at, (rows, WIDTH))
        here = jnp.full((rows, 1), at)
        context = (Segment(*cache, mask),)
        hidden, read = model.trunk(token[:, None], here, None, context)
        update = jax.lax.dynamic_update_slice_in_dim
        cache = KeyValues(
            update(cache.keys, read.keys, at, axis=-1),
            update(cache.values, read.values, at, axis=-2),
            update(cache.positions, read.positions, at, axis=-1),
        )
        chosen = model.logits(hidden[:, 0]).argmax(-1).astype(jnp.int32)
        return (cache, chosen), token

    empty = empty_key_values(model.config, rows, WIDTH, jnp.float32)
    start = (empty, jnp.zeros(rows, jnp.int32))
    return jax.lax.scan(step, start, jnp.arange(WIDTH))[1].T


@pytest.fixture(scope="module")
def paths():
    model, tokenizer = load(SMOLLM2)[0], load_tokenizer(SMOLLM2)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    padded = np.zeros((len(prompts), WIDTH), np.int32)
    for row, ids in zip(padded, prompts, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(ids) for ids in prompts])
    rows = np.asarray(continued(model, padded, lengths))
    forward = jax.jit(lambda model, tokens: model(tokens))
    found = []
    for row, start in zip(rows, lengths.tolist(), strict=True):
        ids = row[: start + NEW].tolist()
        logits = np.asarray(forward(model, row[None]))[0, : len(ids)]
        found.append(Path(start, ids, logits))
    return found


def read(their, ids):
    their.reset()
    their.eval(ids)
    return np.array(their.scores[: len(ids)])


def check_equal(their, paths):
    for prompt, path in zip(PROMPTS, paths, strict=True):
        assert their.tokenize(prompt.encode(), add_bos=False) == path.ids[: path.start]
        expected = read(their, path.ids)
        np.testing.assert_allclose(path.logits, expected, atol=1e-3, rtol=0)
        greedy = expected[path.start - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(path.ids[path.start :], greedy)


@pytest.fixture(scope="module")
def blas():
    library = llama_cpp.llama_cpp._lib
    library.ggml_backend_load_all()
    library.ggml_backend_reg_by_name.restype = ctypes.c_void_p
    if not library.ggml_backend_reg_by_name(b"BLAS"):
        pytest.skip("llama.cpp has no BLAS; the docstring of this file says how to add")


def test_greedy_tokens_and_logits_equal_those_of_llama_cpp_on_the_same_file(
    blas, paths
):
    check_equal(theirs(SMOLLM2), paths)


def test_greedy_tokens_and_logits_equal_those_of_the_file_dequantised_by_llama_cpp(
    paths, tmp_path
):
    target = converted(SMOLLM2, tmp_path / "f32.gguf", "LLAMA_FTYPE_ALL_F32")
    check_equal(theirs(target), paths)


def test_with_8_bit_activations_llama_cpp_is_as_near_to_us_as_to_itself(paths):
    plain = theirs(SMOLLM2, n_batch=EIGHT_BIT)
    fused = theirs(SMOLLM2, n_batch=EIGHT_BIT, flash_attn=True)
    distances, equal, margins = [], [], []
    for path in paths:
        logits = [path.logits, read(plain, path.ids), read(fused, path.ids)]
        ours, expected, other = [x[path.start - 1 : -1] for x in logits]
        distances.append(
            [np.abs(ours - expected).mean(), np.abs(other - expected).mean()]
        )
        choices = [x.argmax(-1) for x in (ours, expected, other)]
        equal.append([(choices[i] == choices[1]).mean() for i in (0, 2)])
        # What either loses by taking the other's choice: nothing where they agree.
        for x, y in ((ours, choices[1]), (expected, choices[0])):
            taken = np.take_along_axis(x, y[:, None], axis=-1)[:, 0]
            margins.append(x.max(-1) - taken)
    to_us, to_itself = np.mean(distances, axis=0)
    assert 0 < to_us < 1.1 * to_itself
    near, itself = np.mean(equal, axis=0)
    assert near > itself - 0.01
    assert 0 < np.max(margins) < 0.5


def rounded(x):
    """Activations in eight bits, and how a block's stored sum differs from theirs."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    scale = largest / np.float32(127)
    whole = np.round(blocks * (np.float32(127) / largest))
    stored = scale.astype(np.float16).astype(np.float32)
    sums = scale[..., 0] * whole.sum(-1)
    excess = sums.astype(np.float16) - stored[..., 0] * whole.sum(-1)
    return (stored * whole).reshape(x.shape), excess


def minima(header, name):
    """The constants of the blocks of a Q4_1 tensor, ``[out, in / 32]``."""
    info = header.tensors[name]
    data = np.memmap(header.path, np.uint8, "r", info.start, (info.num_bytes,))
    # Scale and constant, in half precision, before 32 numbers of four bits.
    blocks = np.asarray(data).reshape(info.shape[0], -1, 20)
    return np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0]


def activations(ids):
    """Every tensor that llama.cpp computes, under the name it has first."""
    library, found = llama_cpp.llama_cpp._lib, {}
    for function in (library.ggml_get_name, library.ggml_get_data):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
    library.ggml_get_name.restype = ctypes.c_char_p
    library.ggml_nelements.argtypes = [ctypes.c_void_p]
    library.ggml_nelements.restype = ctypes.c_int64

    @llama_cpp.ggml_backend_sched_eval_callback
    def keep(tensor, ask, _):
        name = library.ggml_get_name(tensor).decode()
        if not ask and name not in found:
            size = library.ggml_nelements(tensor)
            data = library.ggml_get_data(tensor)
            values = ctypes.cast(data, ctypes.POINTER(ctypes.c_float * size)).contents
            found[name] = np.array(values, np.float32)
        return True

    model = theirs(SMOLLM2, n_batch=EIGHT_BIT)
    model.context_params.cb_eval = keep
    context = llama_cpp._internals.LlamaContext(
        model=model._model, params=model.context_params, verbose=False
    )
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
    assert llama_cpp.llama_decode(context.ctx, batch) == 0
    return found


def test_every_product_of_rounded_activations_equals_that_of_llama_cpp():
    found = activations(load_tokenizer(SMOLLM2).encode(" ".join(PROMPTS))[:EIGHT_BIT])
    model, config = load(SMOLLM2)
    header, block = read_header(SMOLLM2), model.trunk.blocks
    attention, feed_forward = block.attention, block.feed_forward
    layers = [
        ("attn_norm", "Qcur", "attn_q", attention.query, config.num_heads),
        ("attn_norm", "Kcur", "attn_k", attention.key, config.num_kv_heads),
        ("attn_norm", "Vcur", "attn_v", attention.value, None),
        ("kqv_out", "attn_out", "attn_output", attention.out, None),
        ("ffn_norm", "ffn_gate", "ffn_gate", feed_forward.gate, None),
        ("ffn_norm", "ffn_up", "ffn_up", feed_forward.up, None),
        ("ffn_swiglu", "ffn_out", "ffn_down", feed_forward.down, None),
    ]
    products = [("result_norm", "result_output", model.trunk.embedding[...], 0)]
    for into, out, name, linear, heads in layers:
        for layer, kernel in enumerate(np.asarray(linear.kernel[...])):
            rows = kernel.T if heads is None else permute(kernel.T, heads)
            constants = minima(header, f"blk.{layer}.{name}.weight")
            products.append((f"{into}-{layer}", f"{out}-{layer}", rows, constants))
    assert len(products) == 211
    for into, out, rows, constants in products:
        rows = np.asarray(rows, np.float64)
        x = found[into].reshape(-1, rows.shape[1])
        expected = found[out].reshape(-1, rows.shape[0])
        x = x[-len(expected) :]  # logits of the last position only
        coarse, excess = rounded(x)
        got = coarse @ rows.T
        if out != "result_output":  # Q8_0 stores no sums
            got += excess @ np.asarray(constants, np.float64).T
        deviation = expected.std()
        np.testing.assert_allclose(got, expected, atol=1e-4 * deviation, rtol=0)
        assert np.abs(x @ rows.T - expected).max() > 1e-3 * deviation
