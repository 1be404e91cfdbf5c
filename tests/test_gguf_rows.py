"""A GGUF tensor decoded some rows at a time is the tensor decoded at once."""

import gguf
import numpy as np
import pytest
from small_checkpoints import saved, small_config, write_gguf

from tsi.models.checkpoint import load
from tsi.models.gguf import TensorReader, read_header, read_tensor
from tsi.models.placement import BLOCK
from tsi.models.safetensors import ReadsRows


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q4_1"])
def test_rows_of_a_tensor_are_rows_of_the_whole(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    config = small_config(hidden=64)
    file = tmp_path / "model.gguf"
    write_gguf(file, saved(tmp_path / "hf", config), config, quantisation=kind)
    header = read_header(file)
    read = TensorReader(header, "token_embd.weight")
    assert isinstance(read, ReadsRows)
    whole = read_tensor(header, "token_embd.weight")
    np.testing.assert_array_equal(read(), whole)
    np.testing.assert_array_equal(read.rows(3, 17), whole[3:17])


def test_a_tensor_of_several_blocks_is_loaded_whole(tmp_path):
    config = small_config(vocab_size=2 * BLOCK // 32 + 7, num_layers=1)
    folder, file = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    write_gguf(file, folder, config)
    ours, theirs = load(file)[0], load(folder)[0]
    np.testing.assert_array_equal(
        np.asarray(ours.trunk.embedding[...]), np.asarray(theirs.trunk.embedding[...])
    )
