"""A model's own way of sampling: used when asked for, mentioned when not."""

import json

import pytest

from tsi.decoding.truncation import Truncation
from tsi.errors import CheckpointError
from tsi.loading.model_sampling import combine_drawing

NONE = Truncation()
QWEN = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "typical_p": 0.9,
    "eos_token_id": [1, 2],
}


def folder(tmp_path, fields):
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    return tmp_path


def test_what_the_model_says_is_used_when_asked_for(tmp_path):
    path = folder(tmp_path, QWEN)
    drawing = combine_drawing(path, None, NONE, use_model_settings=True)
    assert drawing[:3] == (0.7, Truncation(20, 0.8), 1.05)
    sentence = (
        "policy's generation_config.json has typical_p 0.9, which is not supported."
    )
    assert drawing.notes == (f"the {sentence}",)


def test_what_the_user_says_goes_before(tmp_path):
    path = folder(tmp_path, QWEN)
    said = Truncation(top_p=0.95)
    drawing = combine_drawing(path, 1.0, said, 1.0, use_model_settings=True)
    assert drawing[:3] == (1.0, Truncation(20, 0.95), 1.0)
    cold = combine_drawing(path, 0.0, NONE, use_model_settings=True)
    assert cold.temperature == 0.0


def test_what_is_not_used_is_mentioned(tmp_path):
    path = folder(tmp_path, QWEN)
    drawing = combine_drawing(path, None, Truncation(20), use_model_settings=False)
    assert drawing[:3] == (1.0, Truncation(20), None)
    (note,) = drawing.notes
    assert "temperature 0.7, top_p 0.8, repetition_penalty 1.05" in note
    said = combine_drawing(path, None, NONE, 1.05, use_model_settings=False)
    assert "repetition_penalty" not in said.notes[0]
    assert "top_k" not in note
    assert "--model-sampling" in note


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.6, "top_p": 0.9},
        {"do_sample": False, "top_k": 5},
        {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0},
        {"do_sample": True, "min_p": None},
    ],
)
def test_a_model_that_wishes_nothing_changes_nothing(tmp_path, fields):
    for asked in (True, False):
        drawing = combine_drawing(
            folder(tmp_path, fields), None, NONE, use_model_settings=asked
        )
        assert drawing == (1.0, NONE, None, ())
        file = tmp_path / "model.gguf"
        assert combine_drawing(file, None, NONE, use_model_settings=asked) == drawing


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"temperature": -1}, "temperature=-1"),
        ({"top_p": True}, "top_p=True"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"min_p": float("nan")}, "min_p=nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_wishes_that_are_no_numbers_are_refused(tmp_path, fields, sentence):
    path = folder(tmp_path, {"do_sample": True, **fields})
    with pytest.raises(CheckpointError, match=sentence):
        combine_drawing(path, None, NONE, use_model_settings=True)
