"""Logits equal those of transformers, in float32, on random small configurations.

Needs the extra ``parity`` (PyTorch). Both directions are tested: what transformers
saves and the loader reads, and what the loader saves and transformers reads. Where they
differ, the failure says from which layer on. One feature is not here: transformers
drops Gemma 3's ``attn_logit_softcapping``; tests/test_families.py has it.
"""

import dataclasses

import jax
import numpy as np
import pytest
from small_checkpoints import logits, small_model
from small_families import READ, WRITTEN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from layer_report import layer_report  # noqa: E402
from their_configs import CHANGES, COMMON, ORIGINAL, THEIRS  # noqa: E402

from tsi.models.families.architectures import FAMILIES  # noqa: E402
from tsi.models.loading.checkpoint import load, save  # noqa: E402

pytestmark = pytest.mark.slow

ATOL, LENGTH = 1e-4, 150
KINDS = ("CausalLM", "TokenClassification")
CASES = [
    (family, name, kind)
    for family, table in THEIRS.items()
    for name in table
    for kind in KINDS
    if hasattr(transformers, f"{family}For{kind}")
]


def their_model(family: str, name: str, kind: str):
    """Random weights; norms and biases too, which start where a mistake is not seen."""
    prefix = "Gemma3Text" if family == "Gemma3" else family
    fields = COMMON | CHANGES.get(family, {}) | THEIRS[family][name]
    config = getattr(transformers, f"{prefix}Config")(**fields, num_labels=1)
    torch.manual_seed(1)
    make = getattr(transformers, f"{family}For{kind}")
    model = make._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def their_output(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def assert_equal(ours, theirs, tokens: np.ndarray, what: str) -> None:
    expected, found = their_output(theirs, tokens), logits(ours, tokens)
    if found.ndim < expected.ndim:
        expected = expected[..., 0]
    assert np.std(expected) > 0.1
    difference = np.abs(found - expected).max()
    print(f"{what}: largest difference of outputs {difference:.2e}")
    if not difference <= ATOL:
        report = layer_report(ours, theirs, tokens)
        pytest.fail(f"{what}: outputs differ by {difference:.2e}; {report}")


@pytest.mark.parametrize(("family", "name", "kind"), CASES)
def test_what_transformers_saves_gives_the_same_logits(tmp_path, family, name, kind):
    theirs = their_model(family, name, kind)
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 97, (2, LENGTH))
    assert_equal(ours, theirs, tokens, f"{family}, {name}, {kind}")


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3"])
def test_longrope_beyond_the_original_length_gives_the_same_logits(tmp_path, family):
    theirs = their_model(family, "longrope", "CausalLM")
    theirs.save_pretrained(tmp_path)
    ours, config = load(tmp_path, max_length=256)
    assert (config.max_length, load(tmp_path)[1].max_length) == (256, ORIGINAL)
    tokens = np.random.default_rng(0).integers(0, 97, (2, ORIGINAL + 30))
    assert_equal(ours, theirs, tokens, f"{family}, beyond the original length")


def longrope(original: int):
    """A configuration used at a context of 64, from an original one."""
    config = READ["phi3 beyond its original length"]
    scaling = config.rope.scaling._replace(original=original)
    rope = config.rope._replace(scaling=scaling)
    local = config.sliding_window._replace(rope=rope)
    return dataclasses.replace(config, rope=rope, sliding_window=local)


PLAIN = {
    f"{name}, plain": dataclasses.replace(
        config, sliding_window=None, tied=not config.tied, attention_softcap=None
    )
    for name, config in WRITTEN.items()
}
SAVED = PLAIN | {
    name: dataclasses.replace(config, attention_softcap=None)
    for name, config in WRITTEN.items()
}
# transformers goes by the text, whose length is between the two originals.
SAVED |= {
    "LongRoPE, short": longrope(original=64),
    "LongRoPE, long": longrope(original=16),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAVED)
def test_transformers_reads_what_the_loader_saves(tmp_path, name, kind):
    config = SAVED[name]
    make = getattr(transformers, f"{FAMILIES[config.family].prefix}For{kind}", None)
    if make is None:
        pytest.skip("transformers has no such class")
    model = small_model(config, reward=kind != "CausalLM")
    save(model, config, tmp_path)
    theirs, report = make.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        output_loading_info=True,
        attn_implementation="eager",
    )
    assert not any(report.values()), report
    tokens = np.asarray(jax.random.randint(jax.random.key(0), (2, 60), 0, 40))
    assert_equal(model, theirs.eval(), tokens, f"{name}, {kind}")


def test_a_failure_says_from_which_layer_on_hidden_states_differ(tmp_path):
    theirs = their_model("Qwen3", "all", "CausalLM")
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path)
    up = ours.trunk.blocks.feed_forward.up.kernel
    up[...] = up[...].at[2].add(0.1)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 40))
    lines = layer_report(ours, theirs, tokens).splitlines()[1:]
    differences = [float(line.split(": ")[1].split()[0]) for line in lines]
    assert len(differences) == 5
    assert max(differences[:3]) < ATOL < 0.1 < min(differences[3:])


def test_every_family_is_compared():
    assert set(THEIRS) == {family.prefix for family in FAMILIES.values()}
    assert {config.family for config in READ.values()} == FAMILIES.keys()
