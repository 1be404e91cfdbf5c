"""A GGUF gives the same model as the safetensors it came from, or a sentence."""

import re
import struct

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from small_checkpoints import logits, parameters, saved, small_config, write_gguf

from tsi.errors import CheckpointError
from tsi.models.gguf.file import read_header
from tsi.models.gguf.names import unpermute
from tsi.models.loading.checkpoint import load
from tsi.models.rotary import Llama3Scaling, Rope, inverse_frequencies

TOKENS = np.arange(14).reshape(2, 7) % 40


def make(tmp_path, config, **kwargs):
    folder = saved(tmp_path / "hf", config)
    write_gguf(tmp_path / "model.gguf", folder, config, **kwargs)
    return folder, tmp_path / "model.gguf"


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_equals_the_safetensors_of_the_same_weights(tmp_path, tied):
    folder, file = make(tmp_path, small_config(tied=tied))
    model, config = load(folder)
    other, other_config = load(file)
    # The norm's epsilon went through float32.
    assert other_config.norm_epsilon == pytest.approx(config.norm_epsilon, rel=1e-6)
    assert other_config == small_config(
        tied=tied, norm_epsilon=other_config.norm_epsilon
    )
    one, two = parameters(model), parameters(other)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    np.testing.assert_allclose(logits(model, TOKENS), logits(other, TOKENS), atol=1e-5)


def test_unpermuting_makes_interleaved_pairs_half_split():
    # Row (head, pair, member) of llama.cpp's order, written as its place in ours.
    stored = np.array([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])
    np.testing.assert_array_equal(unpermute(stored, 2), np.arange(12))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_a_quantised_gguf_loads_as_its_dequantised_weights(tmp_path, kind):
    # Widths are multiples of the quantisation block of 32.
    kind = gguf.GGMLQuantizationType[kind]
    config = small_config(hidden=64)
    folder, file = make(tmp_path, config, quantisation=kind)
    exact, rounded = parameters(load(folder)[0]), parameters(load(file)[0])
    for name, value in exact.items():
        if "norm" in name:
            np.testing.assert_array_equal(value, rounded[name], err_msg=name)
            continue
        rows = value.swapaxes(-1, -2) if name.endswith("kernel") else value
        expected = dequantize(quantize(np.ascontiguousarray(rows), kind), kind)
        if name.endswith("kernel"):
            expected = expected.swapaxes(-1, -2)
        np.testing.assert_array_equal(expected, rounded[name], err_msg=name)


def test_scaled_rotary_frequencies_are_recovered_from_the_stored_factors(tmp_path):
    plain = Rope(5e5)
    rope = plain._replace(scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192.0))
    scaled = small_config(head_width=64, rope=rope)
    factors = inverse_frequencies(plain, 64) / inverse_frequencies(rope, 64)
    _, file = make(tmp_path, scaled, rope_factors=factors)
    assert load(file)[1].rope.scaling == pytest.approx(rope.scaling)
    for odd in (factors[::-1], factors**0.5, np.ones(8), np.zeros(32)):
        write_gguf(file, tmp_path / "hf", scaled, rope_factors=odd)
        with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
            load(file)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"general.alignment": 48}, r"alignment is 48"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.expert_count": 8}, "expert_count = 8"),
    ],
)
def test_metadata_that_the_port_cannot_do_is_refused_by_name(tmp_path, fields, says):
    _, file = make(tmp_path, small_config(), fields=fields)
    with pytest.raises(CheckpointError, match=says):
        load(file)


def test_missing_and_extra_tensors_of_a_gguf_are_listed_together(tmp_path):
    drop = ("blk.1.ffn_up.weight", "output_norm.weight")
    _, file = make(tmp_path, small_config(), drop=drop)
    with pytest.raises(CheckpointError) as caught:
        load(file)
    assert "missing: model.layers.1.mlp.up_proj.weight" in str(caught.value)
    assert "missing: model.norm.weight" in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_is_wrong_with_a_tensor_of_a_gguf_is_said_with_its_file(tmp_path):
    config = small_config()
    folder, file = make(tmp_path, config)
    narrow = small_config(num_kv_heads=1)
    write_gguf(tmp_path / "narrow.gguf", folder, narrow)
    says = r"shape: .*k_proj\.weight in narrow\.gguf is \[16, 32\]"
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "narrow.gguf")
    info = read_header(file).tensors["output_norm.weight"]
    content = bytearray(file.read_bytes())
    content[info.start : info.start + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(content)
    says = re.escape(f"{file}: tensor model.norm.weight has values that are not finite")
    with pytest.raises(CheckpointError, match=says):
        load(file)


def test_another_architecture_is_refused_and_the_supported_are_listed(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("a", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"'mamba'. Supported in GGUF: llama"):
        load(tmp_path / "m.gguf")


def test_a_file_that_is_not_gguf_or_is_cut_short_is_refused(tmp_path):
    _, file = make(tmp_path, small_config())
    whole = file.read_bytes()
    for content, says in (
        (b"", "cannot be read"),
        (b"PK\x03\x04" + bytes(40), "is not a GGUF file"),
        (b"GGUF\x01" + whole[5:], "version 1"),
        (whole[:10], "ends inside its header"),
        (whole[:300], "Download it again"),
        (whole[:-64], "truncated or damaged"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=says):
            load(file)


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def crafted(fields=b"", num_fields=0, tensors=b"", num_tensors=0, data=b""):
    head = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields) + fields + tensors
    return head + bytes(-len(head) % 32) + data


def tensor(name, shape, kind, offset):
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


ARRAY = 9


@pytest.mark.parametrize(
    ("content", "says"),
    [
        # The gguf package's own reader never returns from this one.
        (
            crafted(text("a") + struct.pack("<IIQ", ARRAY, 4, 2**60), 1),
            "claims 1152921504606846976 entries",
        ),
        (crafted(text("a") + struct.pack("<IIQ", ARRAY, 8, 2**63), 1), "claims"),
        (crafted(text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1), 1), "type 9"),
        # There, and yet sixteen times as large as Python's numbers.
        (
            crafted(
                text("a")
                + struct.pack("<IIQ", ARRAY, 0, 2**21)
                + bytes(2**21)
                + text("b")
                + struct.pack("<IIQ", ARRAY, 0, 2**21)
                + bytes(2**21),
                2,
            ),
            "makes 4194306 in its header",
        ),
        (crafted(num_fields=2**64 - 1), "claims 18446744073709551615 entries"),
        (crafted(num_tensors=2**40), "claims 1099511627776 entries"),
        (crafted((text("a") + struct.pack("<IB", 0, 1)) * 2, 2), "field a twice"),
        (
            crafted(
                tensors=tensor("a", (8,), 0, 0) + tensor("b", (8,), 0, 0),
                num_tensors=2,
                data=bytes(64),
            ),
            "tensor b should lie",
        ),
        (
            crafted(
                tensors=tensor("a", (8,), 0, 0) + tensor("a", (8,), 0, 32),
                num_tensors=2,
                data=bytes(64),
            ),
            "the tensor a twice",
        ),
        (
            crafted(tensors=tensor("a", (2**32, 2**32), 0, 0), num_tensors=1),
            "tensor a should lie",
        ),
        (crafted(tensors=tensor("a", (8,), 99, 0), num_tensors=1), "unknown type 99"),
        (crafted(tensors=tensor("a", (), 0, 0), num_tensors=1), "has 0 dimensions"),
        (crafted(tensors=tensor("a", (8, 0), 0, 0), num_tensors=1), "shape"),
        (crafted(tensors=tensor("a", (33,), 8, 0), num_tensors=1), "blocks of 32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_lengths_offsets_and_types_are_refused(tmp_path, content, says):
    file = tmp_path / "crafted.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        read_header(file)
