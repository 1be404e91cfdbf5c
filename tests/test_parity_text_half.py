"""Models that see pictures too, given text: logits equal those of transformers."""

import json

import numpy as np
import pytest
from their_configs import CHANGES, COMMON, LINEAR, MIXED, gemma_ropes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from small_checkpoints import logits  # noqa: E402

from tsi.models.loading.checkpoint import load  # noqa: E402

pytestmark = pytest.mark.slow

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
PICTURES = {"Gemma3": {"mm_tokens_per_image": 4}, "Mistral3": {}}
GLOBAL = LINEAR | {"factor": 8.0, "rope_theta": 1e6}
TEXT = {
    "Gemma3": {
        **COMMON,
        **CHANGES["Gemma3"],
        "layer_types": MIXED,
        "attention_bias": True,
        **gemma_ropes(GLOBAL, {"rope_type": "default", "rope_theta": 1e4}),
    },
    "Mistral3": COMMON | {"sliding_window": 20, "model_type": "mistral"},
}
ATOL = 1e-4


def their_model(name: str, kind: str = "ForConditionalGeneration", **changes):
    config = getattr(transformers, f"{name}Config")(
        text_config=TEXT[name],
        vision_config=VISION,
        image_token_index=96,
        **PICTURES[name],
        **changes,
    )
    torch.manual_seed(1)
    make = getattr(transformers, f"{name}{kind}")
    model = make._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", TEXT)
def test_text_gives_the_logits_of_the_whole_model(tmp_path, name, tied):
    theirs = their_model(name, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path)
    ours, config = load(tmp_path)
    assert config.tied == tied
    tokens = np.random.default_rng(0).integers(0, 96, (2, 150))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(logits(ours, tokens), expected, atol=ATOL)


def test_a_whole_model_that_scores_gives_the_same_scores(tmp_path):
    kind = "ForSequenceClassification"
    theirs = their_model("Gemma3", kind, num_labels=1, pad_token_id=0)
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path)
    tokens = np.random.default_rng(0).integers(1, 96, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()[:, 0]
    np.testing.assert_allclose(logits(ours, tokens)[:, -1], expected, atol=ATOL)


def test_rotary_fields_of_the_releases_before_the_fifth_mean_the_same(tmp_path):
    """As the hub's Gemma 3 has them; transformers reads the old words, too."""
    theirs = their_model("Gemma3")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    text = fields["text_config"]
    both = text.pop("rope_parameters")
    text["rope_theta"] = both["full_attention"]["rope_theta"]
    text["rope_local_base_freq"] = both["sliding_attention"]["rope_theta"]
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    text["sliding_window_pattern"] = 2
    del text["layer_types"]
    path.write_text(json.dumps(fields))
    again = transformers.Gemma3ForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = np.random.default_rng(0).integers(0, 96, (1, 100))
    with torch.no_grad():
        expected = again(torch.tensor(tokens)).logits.numpy()
        assert np.abs(theirs(torch.tensor(tokens)).logits.numpy() - expected).max() == 0
    np.testing.assert_allclose(logits(load(tmp_path)[0], tokens), expected, atol=ATOL)
