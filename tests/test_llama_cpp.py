"""GGUF files mean here what they mean to llama.cpp: logits, and ids of tokens.

Needs llama-cpp-python, which compiles llama.cpp, so it is in no extra. Weights are
float32 throughout: with quantised ones llama.cpp rounds activations to eight bits too,
which moves SmolLM2's logits by 0.2 in the mean, whoever does it.
"""

import dataclasses
import functools
import unicodedata

import gguf
import jax
import numpy as np
import pytest
from gguf.quants import dequantize
from small_checkpoints import (
    bpe_tokenizer,
    logits,
    saved,
    sentencepiece_fields,
    small_config,
    write_gguf,
    write_vocabulary,
)
from test_gguf_families import CASES, LONG, LONGER
from test_gguf_tokenizer import SPM_TURN, TEXTS, bpe_fields

from tsi.models import catalogue
from tsi.models.checkpoint import load
from tsi.models.rotary import Llama3Scaling, LongRopeScaling, Rope, inverse_frequencies
from tsi.models.tokenizer_files import load_tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

SMOLLM2 = catalogue.location("smollm2-135m")
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
FLOAT32 = 0
LENGTH = 40
# It has no bias on the attention's output in these families, and opens no such file.
NOT_THERE = ("qwen3 with biases", "gemma3 with biases")


def theirs(path, context=256):
    return llama_cpp.Llama(
        str(path),
        n_ctx=context,
        logits_all=True,
        type_k=FLOAT32,
        type_v=FLOAT32,
        n_threads=1,
        verbose=False,
    )


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
        config = dataclasses.replace(config, local=None)  # which it does not apply
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


@pytest.fixture(scope="module")
def float32_smollm2(tmp_path_factory):
    """The file's weights dequantised by the gguf package, and all else as it is."""
    if not SMOLLM2.exists():
        pytest.skip("smollm2-135m is not in the cache")
    reader = gguf.GGUFReader(SMOLLM2)
    path = tmp_path_factory.mktemp("smollm2") / "f32.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        shape = tensor.shape[::-1].tolist()
        value = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        writer.add_tensor(tensor.name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_greedy_tokens_and_logits_of_smollm2_equal_those_of_llama_cpp(float32_smollm2):
    tokenizer, model = load_tokenizer(SMOLLM2), load(SMOLLM2)[0]
    their = theirs(float32_smollm2)
    forward = jax.jit(lambda model, tokens: model(tokens))
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert ids == their.tokenize(prompt.encode(), add_bos=False)
        start = len(ids)
        their.reset()
        their.eval(ids)
        while len(ids) < start + 64:
            ids.append(int(their.scores[their.n_tokens - 1].argmax()))
            their.eval(ids[-1:])
        tokens = np.zeros((1, 96), np.int32)
        tokens[0, : len(ids)] = ids
        got = np.asarray(forward(model, tokens))[0, : len(ids)]
        expected = np.array(their.scores[: len(ids)])
        np.testing.assert_allclose(got, expected, atol=1e-3, rtol=0)
        # Teacher-forced along their path, equal choices mean an equal path.
        greedy = got[start - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(greedy, ids[start:])
