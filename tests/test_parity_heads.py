"""Reward heads give what transformers' models and the released code give.

Needs the extra ``parity`` (PyTorch). transformers has heads for sequences; those of
process reward models are written out here as they are in the repositories of the
models, on transformers' trunk.
"""

import json

import numpy as np
import pytest
from small_checkpoints import logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402
from their_configs import CHANGES, COMMON, THEIRS  # noqa: E402

from tsi.models.loading.checkpoint import load  # noqa: E402

pytestmark = pytest.mark.slow

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3Text", "Phi3")
ATOL, LENGTH = 1e-4, 60
TOKENS = np.random.default_rng(0).integers(1, 97, (2, LENGTH))


def randomised(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def config_of(family: str, **fields):
    make = getattr(transformers, f"{family}Config")
    family = family.removesuffix("Text")
    features = THEIRS[family].get("all", {})
    return make(**(COMMON | CHANGES.get(family, {}) | features | fields))


def log_odds(outputs: np.ndarray) -> np.ndarray:
    return (
        outputs[..., -1] - outputs[..., 0]
        if outputs.shape[-1] == 2
        else outputs[..., 0]
    )


@pytest.mark.parametrize("labels", [1, 2])
@pytest.mark.parametrize(
    "family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3Text", "Phi3"]
)
def test_scores_of_sequences_are_those_of_transformers(tmp_path, family, labels):
    make = getattr(transformers, f"{family}ForSequenceClassification")
    config = config_of(family, num_labels=labels, pad_token_id=0)
    theirs = make._from_config(config, attn_implementation="eager")
    randomised(theirs).save_pretrained(tmp_path)
    with torch.no_grad():
        expected = log_odds(theirs(torch.tensor(TOKENS)).logits.numpy())
    ours, _ = load(tmp_path)
    found = logits(ours, TOKENS)[:, -1]
    print(family, labels, np.abs(found - expected).max())
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=ATOL, rtol=0)


def released_head(kind: str, width: int):
    """Modules, names and outputs of the released code of process reward models."""
    linear = torch.nn.Linear
    if kind == "Qwen2ForPrmModel":
        return {"v_head.summary": linear(width, 1)}, 1
    labels = 2 if kind == "Qwen2ForProcessRewardModel" else 1
    return {"score.0": linear(width, width), "score.2": linear(width, labels)}, labels


@pytest.mark.parametrize(
    "kind", ["Qwen2ForProcessRewardModel", "Qwen2ForRewardModel", "Qwen2ForPrmModel"]
)
def test_scores_of_steps_are_those_of_the_released_heads(tmp_path, kind):
    torch.manual_seed(0)
    config = config_of("Qwen2")
    trunk = randomised(
        transformers.Qwen2Model._from_config(config, attn_implementation="eager")
    )
    modules, labels = released_head(kind, config.hidden_size)
    with torch.no_grad():
        x = trunk(torch.tensor(TOKENS)).last_hidden_state
        for number, module in enumerate(modules.values()):
            x = module(torch.relu(x) if number else x)
    tensors = {f"model.{name}": value for name, value in trunk.state_dict().items()}
    for name, module in modules.items():
        tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    tensors = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    fields = config.to_dict() | {"architectures": [kind], "num_labels": labels}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ours, _ = load(tmp_path)
    found, expected = logits(ours, TOKENS), log_odds(x.numpy())
    print(kind, np.abs(found - expected).max())
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(found, expected, atol=ATOL, rtol=0)
