"""A tensor read some rows at a time is the tensor read at once, and no row is twice."""

import collections

import gguf
import numpy as np
import pytest
from small_checkpoints import saved, small_config, write_gguf

from tsi.models.families import phi3
from tsi.models.gguf import file as gguf_files
from tsi.models.gguf.file import TensorReader, read_header, read_tensor
from tsi.models.loading.checkpoint import load
from tsi.models.tensors.placement import BLOCK
from tsi.models.tensors.safetensors import RowReader, open_folder


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0", "Q4_1"])
def test_rows_of_a_tensor_are_rows_of_the_whole(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    config = small_config(hidden=64)
    file = tmp_path / "model.gguf"
    write_gguf(file, saved(tmp_path / "hf", config), config, quantisation=kind)
    header = read_header(file)
    read = TensorReader(header, "token_embd.weight")
    assert isinstance(read, RowReader)
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


@pytest.mark.parametrize("family", ["phi3", "llama"])
def test_each_row_of_a_fused_tensor_is_decoded_once(tmp_path, family, monkeypatch):
    """Phi-3's are fused in any file, Llama's where the converter was asked to."""
    config = small_config(family=family, tied=False)
    file, read = tmp_path / "model.gguf", gguf_files.read_tensor
    write_gguf(file, saved(tmp_path / "hf", config), config, fuse=family == "llama")
    decoded: collections.Counter[str] = collections.Counter()

    def counted(header, name, *part):
        values = read(header, name, *part)
        decoded[name] += len(values)
        return values

    monkeypatch.setattr(gguf_files, "read_tensor", counted)
    load(file)
    expected = {n: info.shape[0] for n, info in read_header(file).tensors.items()}
    assert "blk.0.attn_qkv.weight" in expected
    assert decoded == expected


def test_a_part_of_a_fused_tensor_on_disk_is_a_view_of_it(tmp_path):
    config = small_config(family="phi3", tied=False)
    stored = open_folder(saved(tmp_path, config))
    parts = phi3.unfuse(config, stored)
    whole = stored["model.layers.1.self_attn.qkv_proj.weight"].read()
    start = 0
    for name in "qkv":
        part = parts[f"model.layers.1.self_attn.{name}_proj.weight"]
        stop = start + part.shape[0]
        np.testing.assert_array_equal(part.read(), whole[start:stop])
        assert part.read().ctypes.data == whole[start:stop].ctypes.data
        start = stop
    assert start == len(whole)
