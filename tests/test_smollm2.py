"""The real language model answers: its weights, tokenizer and template fit together.

Needs ``tsi models get smollm2-135m`` once; skipped where it has not been fetched.
"""

import jax
import numpy as np
import pytest

from tsi.models.loading import catalogue
from tsi.models.loading.checkpoint import load
from tsi.models.loading.load_tokenizer import load_tokenizer

PATH = catalogue.location("smollm2-135m")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PATH.exists(), reason="smollm2-135m is not in the cache"),
]


def test_greedy_decoding_of_a_chat_adds_three_and_four():
    model, config = load(PATH)
    tokenizer = load_tokenizer(PATH)
    assert config.vocab_size == tokenizer.vocab_size
    assert config.eos_ids == tokenizer.eos_ids
    forward = jax.jit(lambda model, tokens: model(tokens))
    ids = tokenizer.encode_prompt("What is 3 + 4?")
    prompt = len(ids)
    tokens = np.zeros((1, prompt + 8), np.int32)
    for position in range(prompt, prompt + 8):
        tokens[0, : len(ids)] = ids
        ids.append(int(forward(model, tokens)[0, position - 1].argmax()))
    assert tokenizer.decode(ids[prompt:]).startswith("3 + 4 = 7")
