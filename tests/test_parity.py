"""Logits equal those of transformers, in float32, on random small configurations.

Needs the extra ``parity`` (PyTorch). Both directions are tested: what transformers
saves and the loader reads, and what the loader saves and transformers reads.
"""

import jax
import numpy as np
import pytest
from small_checkpoints import logits, small_config, small_model

from tsi.models.checkpoint import load, save
from tsi.models.rotary import Llama3Scaling, Rope

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

ATOL = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Short enough that all three ranges of wavelengths occur.
    "original_max_position_embeddings": 64,
}
CONFIGURATIONS = {
    "grouped": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "full heads": {"num_key_value_heads": 4},
    "untied": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama3 rotary": {"num_key_value_heads": 2, "rope_parameters": LLAMA3},
    "wide heads": {"num_key_value_heads": 2, "head_dim": 32},
    "deep": {"num_key_value_heads": 2, "num_hidden_layers": 7},
}


def their_config(**changes):
    return transformers.DecoderConfig(
        **{
            "vocab_size": 97,
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "num_labels": 1,
        }
        | changes
    )


def their_output(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


def randomise(model):
    """Norm weights start at one, where a wrong norm would not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["CausalLM", "TokenClassification"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_transformers_saves_gives_the_same_logits(tmp_path, name, kind):
    torch.manual_seed(1)
    make = getattr(transformers, f"LlamaFor{kind}")
    theirs = make(their_config(**CONFIGURATIONS[name]))
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 150))
    expected = their_output(theirs, tokens)
    got = logits(ours, tokens)
    if kind == "TokenClassification":
        expected = expected[..., 0]
    assert np.std(expected) > 0.1
    difference = np.abs(got - expected).max()
    print(f"{name}, {kind}: largest difference {difference:.2e}")
    np.testing.assert_allclose(got, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reward", [True, False])
def test_transformers_reads_what_the_loader_saves(tmp_path, tied, reward):
    config = small_config(
        tied=tied, rope=Rope(scaling=Llama3Scaling(8.0, 1.0, 4.0, 32.0))
    )
    model = small_model(config, reward=reward)
    save(model, config, tmp_path)
    kind = "TokenClassification" if reward else "CausalLM"
    make = getattr(transformers, f"LlamaFor{kind}")
    theirs, report = make.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    tokens = np.asarray(jax.random.randint(jax.random.key(0), (2, 60), 0, 40))
    expected = their_output(theirs, tokens)
    expected = expected[..., 0] if reward else expected
    np.testing.assert_allclose(logits(model, tokens), expected, atol=ATOL, rtol=0)
