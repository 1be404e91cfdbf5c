"""GGUF files mean here what they mean to llama.cpp: logits, and ids of tokens.

Needs llama-cpp-python, which compiles llama.cpp, so it is in no extra. Weights are
float32 throughout; quantised ones are compared in test_llama_cpp_smollm2.py.
"""

import ctypes
import dataclasses
import functools
import unicodedata

import numpy as np
import pytest
from small_checkpoints import (
    bpe_tokenizer,
    logits,
    parameters,
    saved,
    sentencepiece_fields,
    small_config,
    write_gguf,
    write_vocabulary,
)
from test_gguf_families import CASES, LONG, LONGER
from test_gguf_tokenizer import SPM_TURN, TEXTS, bpe_fields

from tsi.models.gguf.file import read_header
from tsi.models.loading.checkpoint import load
from tsi.models.loading.load_tokenizer import load_tokenizer
from tsi.models.rotary import Llama3Scaling, LongRopeScaling, Rope, inverse_frequencies

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

FLOAT32 = 0
LENGTH = 40
# It has no bias on the attention's output in these families, and opens no such file.
NOT_THERE = ("qwen3 with biases", "gemma3 with biases")
QUANTISED = (
    *("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M"),
    *("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S"),
    *("IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0"),
)
"""llama.cpp's names of mixtures of types."""


def theirs(path, context=256, **options):
    return llama_cpp.Llama(
        str(path),
        n_ctx=context,
        logits_all=True,
        type_k=FLOAT32,
        type_v=FLOAT32,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        **options,
    )


def converted(source, target, kind, importance=None):
    """Have llama.cpp write a file anew with weights of another type.

    Args:
        importance: of every column, by tensor; the types below three bits need it.
    """
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, kind)
    settings.allow_requantize, settings.nthread = True, 1
    if importance is not None:
        entry, floats = llama_cpp.llama_model_imatrix_data, ctypes.c_float
        rows = [
            entry(name.encode(), (floats * len(row))(*row), len(row))
            for name, row in importance.items()
        ]
        settings.imatrix = (entry * (len(rows) + 1))(*rows)  # ends at one without name
    files = bytes(source), bytes(target)
    assert llama_cpp.llama_model_quantize(*files, ctypes.byref(settings)) == 0
    return target


def check_logits(path, vocab_size, atol, max_length=None):
    ids = np.random.default_rng(0).integers(0, vocab_size, LENGTH)
    model = theirs(path, max_length or 256)
    model.eval(ids.tolist())
    expected = np.array(model.scores[:LENGTH])
    got = logits(load(path, max_length=max_length)[0], ids[None])[0]
    assert expected.std() > 0.5
    np.testing.assert_allclose(got, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_THERE])
def test_logits_of_every_family_equal_those_of_llama_cpp(tmp_path, name):
    tokenizer = bpe_tokenizer()
    config = dataclasses.replace(CASES[name], vocab_size=tokenizer.vocab_size)
    if name == "phi3":
        config = dataclasses.replace(
            config, sliding_window=None
        )  # which it does not apply
    folder, file = saved(tmp_path / "hf", config), tmp_path / "m.gguf"
    write_gguf(file, folder, config, tokenizer=tokenizer)
    # Its GELU is a table of half-precision numbers.
    check_logits(file, config.vocab_size, 1e-2 if "gemma" in name else 1e-4)


def test_logits_with_scaled_frequencies_equal_those_of_llama_cpp(tmp_path):
    tokenizer = bpe_tokenizer()
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 64.0)
    config = small_config(vocab_size=tokenizer.vocab_size, head_width=16)
    scaled = dataclasses.replace(config, rope=Rope(1e4, scaling=scaling))
    plain = inverse_frequencies(Rope(1e4), 16)
    factors = plain / inverse_frequencies(scaled.rope, 16)
    folder, file = saved(tmp_path / "hf", scaled), tmp_path / "m.gguf"
    write_gguf(file, folder, scaled, tokenizer=tokenizer, rope_factors=factors)
    check_logits(file, config.vocab_size, 1e-4)


@pytest.mark.parametrize("max_length", [256, 512])
def test_logits_with_longrope_equal_those_of_llama_cpp(tmp_path, max_length):
    """It chooses by the context that a model is used at, too."""
    tokenizer = bpe_tokenizer()
    scaling = LongRopeScaling(LONG, LONGER, 256, 1024, 1.2)
    config = small_config(
        vocab_size=tokenizer.vocab_size, family="phi3", rope=Rope(1e4, 0.75, scaling)
    )
    folder, file = saved(tmp_path / "hf", config), tmp_path / "m.gguf"
    write_gguf(file, folder, config, tokenizer=tokenizer)
    check_logits(file, config.vocab_size, 1e-4, max_length)


@pytest.mark.parametrize(
    "pre", ["llama-bpe", "qwen2", "smollm", "gpt-2", "dbrx", "tekken", "default"]
)
def test_byte_level_ids_equal_those_of_llama_cpp(tmp_path, pre):
    fields = bpe_fields(bpe_tokenizer(), pre)
    # It has no normaliser; Qwen has one.
    nfc = functools.partial(unicodedata.normalize, "NFC")
    path = write_vocabulary(tmp_path / "m.gguf", "llama", fields)
    check_ids(path, nfc if pre == "qwen2" else str)


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_ids_equal_those_of_llama_cpp(tmp_path, space_prefix):
    fields = sentencepiece_fields(SPM_TURN) | {"add_space_prefix": space_prefix}
    check_ids(write_vocabulary(tmp_path / "m.gguf", "llama", fields))


def check_ids(path, normalise=str):
    ours = load_tokenizer(path)
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in TEXTS:
        if ours.backend.normalizer is not None and "NFC" in str(
            ours.backend.normalizer
        ):
            text = ours.backend.normalizer.normalize_str(text)  # llama.cpp has none
        for special in (False, True):
            expected = model.tokenize(text.encode(), add_bos=False, special=special)
            assert ours.encode(text, allow_special=special) == expected, repr(text)


@pytest.mark.parametrize("kind", QUANTISED)
def test_dequantised_weights_equal_those_of_llama_cpp(tmp_path, kind):
    tokenizer = bpe_tokenizer()
    config = small_config(
        vocab_size=tokenizer.vocab_size,
        width=256,
        hidden=256,
        num_layers=2,
        head_width=64,
    )
    folder, file = saved(tmp_path / "hf", config), tmp_path / "m.gguf"
    write_gguf(file, folder, config, tokenizer=tokenizer)
    importance = {name: [1.0] * 256 for name in read_header(file).tensors}
    target, kind = tmp_path / "small.gguf", f"LLAMA_FTYPE_MOSTLY_{kind}"
    small = converted(file, target, kind, importance)
    assert small.stat().st_size < 0.6 * file.stat().st_size
    whole = converted(small, tmp_path / "whole.gguf", "LLAMA_FTYPE_ALL_F32")
    got, expected = parameters(load(small)[0]), parameters(load(whole)[0])
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-6, atol=0, err_msg=name)
    original = parameters(load(file)[0])["trunk.embedding"]
    assert np.corrcoef(got["trunk.embedding"].flat, original.flat)[0, 1] > 0.8
