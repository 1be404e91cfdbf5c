"""Models that see pictures too: their text half is read, and nothing else of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_checkpoints import parameters, saved
from small_families import WRITTEN

from tsi.errors import CheckpointError
from tsi.models.loading.checkpoint import load, save

HUB = {"lm_head.": "language_model.lm_head.", "model.": "language_model.model."}
NEW = {"model.": "model.language_model."}
VISION = {"hub": "", "new": "model."}
KINDS = {"gemma3": "Gemma3", "mistral": "Mistral3"}
LAYOUTS = {"hub": HUB, "new": NEW}


def whole_model(folder: Path, name: str, layout: str, **changes) -> Path:
    """A small text model laid out as the text half of one that sees pictures."""
    text = saved(folder / "text", WRITTEN[name], seed=3)
    tensors = {}
    for old, value in load_file(text / "model.safetensors").items():
        start = next((p for p in LAYOUTS[layout] if old.startswith(p)), "")
        tensors[LAYOUTS[layout].get(start, "") + old[len(start) :]] = value
    vision = VISION[layout]
    # Of a type that the loader does not read, as nobody reads it.
    position_ids = np.zeros((1, 4), np.int64)
    tensors[f"{vision}vision_tower.embeddings.position_ids"] = position_ids
    projector = np.zeros((4, 4), np.float32)
    tensors[f"{vision}multi_modal_projector.mm_input_projection_weight"] = projector
    fields = json.loads((text / "config.json").read_text())
    architecture = f"{KINDS[name]}ForConditionalGeneration"
    outer = {
        "architectures": [architecture],
        "eos_token_id": [1, 7],
        "text_config": fields,
        "vision_config": {"hidden_size": 4, "num_hidden_layers": 27},
    }
    del fields["architectures"]
    target = folder / "whole"
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(outer | changes))
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KINDS)
def test_the_text_half_is_the_text_model(tmp_path, name, layout):
    model, config = load(whole_model(tmp_path, name, layout))
    text, text_config = load(tmp_path / "text")
    assert config.eos_ids == (1, 7)
    assert text_config.eos_ids == (1,)
    expected, found = parameters(text), parameters(model)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    save(model, config, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == load_file(tmp_path / "text" / "model.safetensors").keys()


def test_a_tensor_that_nobody_knows_is_reported(tmp_path):
    folder = whole_model(tmp_path, "gemma3", "hub")
    path = folder / "model.safetensors"
    more = {"audio_tower.weight": np.zeros(3, np.float32)}
    more["model.language_model.norm.weight"] = np.zeros(32, np.float32)
    save_file(load_file(path) | more, path)
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert "extra: audio_tower.weight" in str(error.value)
    assert "2 of its tensors" in str(error.value)
    assert re.search(r"extra: .*language_model\..*norm\.weight", str(error.value))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_config": None}, "text_config, which is None"),
        ({"text_config": [1]}, r"text_config, which is \[1\]"),
        ({"text_config": {"model_type": "ministral3"}}, "is a 'ministral3'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_a_text_half_that_no_port_reads_is_refused(tmp_path, changes, says):
    folder = whole_model(tmp_path, "mistral", "hub", **changes)
    with pytest.raises(CheckpointError, match=says):
        load(folder)


def test_the_head_is_tied_where_the_whole_model_says_so(tmp_path):
    folder = whole_model(tmp_path, "gemma3", "new", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight"):
        load(folder)
