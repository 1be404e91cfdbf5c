"""Damaged files give a CheckpointError or a whole model: no crash, no huge allocation.

Every mutation is one that a broken download or an attacker could make: bytes flipped,
lengths replaced by absurd ones, ranges cut out, repeated or overwritten, and JSON that
is well-formed and says something else.
"""

import copy
import json
import re
import shutil
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from family_configs import family_configs
from safetensors.numpy import load_file, save_file
from small_checkpoints import bpe_tokenizer, parameters, saved, small_config, write_gguf
from test_gguf_families import CASES

from tsi.errors import CheckpointError
from tsi.models.families.architectures import FAMILIES
from tsi.models.gguf.file import read_header
from tsi.models.loading.checkpoint import load
from tsi.models.loading.load_tokenizer import load_tokenizer

MUTATIONS = 100
MAX_PEAK = 32 << 20
MAX_SECONDS = 20
ABSURD = (0, 1, 0x7F, 2**31 - 1, 2**32 - 1, 2**48, 2**62, 2**63, 2**64 - 1)


def mutate(rng: np.random.Generator, content: bytes, header: int) -> bytes:
    """One to three random changes, most of them in the header."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        limit = min(header, len(data)) if rng.random() < 0.8 else len(data)
        at = int(rng.integers(0, max(1, limit)))
        length = int(rng.integers(1, 40))
        match rng.integers(0, 6):
            case 0:
                data[at : at + 1] = bytes([rng.integers(0, 256)])
            case 1:
                data[at : at + 8] = ABSURD[rng.integers(len(ABSURD))].to_bytes(
                    8, "little"
                )
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                del data[at:]
            case 5:
                # Digits, brackets and quotes: JSON that still parses, and is wrong.
                data[at : at + 1] = bytes([rng.choice(list(b'0123456789,:[]{}"'))])
    return bytes(data)


def absurd_value(rng: np.random.Generator):
    """What a field of a well-formed file should not be."""
    values = [*ABSURD, -1, 3, 0.5, 1e308, float("nan"), "x", "", None, True, [], {}]
    values += [[1], [[]], [-1, 4], {"a": 1}, "BF16", "F64", "I64", "full_attention"]
    return values[rng.integers(len(values))]


def mutate_fields(rng: np.random.Generator, fields):
    """A copy of some JSON with one value in it, however deep, replaced or gone."""
    fields = copy.deepcopy(fields)
    keys = list(fields) if isinstance(fields, dict) else list(range(len(fields)))
    if not keys:
        return absurd_value(rng)
    key = keys[rng.integers(len(keys))]
    inner = fields[key]
    if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
        fields[key] = mutate_fields(rng, inner)
    elif rng.random() < 0.2:
        del fields[key]
    else:
        fields[key] = absurd_value(rng)
    return fields


def outcomes(attempt, mutations, names):
    """How many mutations loaded and were refused; a refusal says in which file."""
    good, refusals = 0, []
    for mutation in mutations:
        tracemalloc.start()
        began = time.perf_counter()
        try:
            attempt(mutation)
            good += 1
        except CheckpointError as error:
            refusals.append(str(error))
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MAX_PEAK
        assert time.perf_counter() - began < MAX_SECONDS
    silent = [text for text in refusals if not any(name in text for name in names)]
    assert not silent
    return good, len(refusals)


def mutations(seed, content, header, count=MUTATIONS):
    rng = np.random.default_rng(seed)
    return (mutate(rng, content, header) for _ in range(count))


def load_whole(path, names):
    model, _ = load(path)
    values = parameters(model)
    assert values.keys() == names
    assert all(np.isfinite(value).all() for value in values.values())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    config = small_config(num_layers=1, width=16, hidden=16, vocab_size=300)
    folder = saved(tmp_path_factory.mktemp("fuzz") / "hf", config)
    file = folder.parent / "model.gguf"
    write_gguf(file, folder, config)
    return folder, file, parameters(load(folder)[0]).keys()


@pytest.fixture(scope="module", params=sorted(family_configs()))
def family(request, tmp_path_factory):
    """A folder of each family, and the names of the parameters in it."""
    folder = tmp_path_factory.mktemp("fuzz") / request.param
    saved(folder, family_configs()[request.param])
    return folder, parameters(load(folder)[0]).keys()


def header_of(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_damaged_safetensors_never_crash(family, tmp_path):
    folder, names = family
    target = shutil.copytree(folder, tmp_path / "copy")
    content = (folder / "model.safetensors").read_bytes()

    def attempt(data):
        (target / "model.safetensors").write_bytes(data)
        load_whole(target, names)

    count = MUTATIONS // 2
    changed = mutations(1, content, header_of(content), count)
    good, refused = outcomes(attempt, changed, [str(target)])
    assert refused > count // 2
    assert good > 0


def test_headers_that_say_something_else_never_crash(family, tmp_path):
    """Well-formed headers with other types, shapes and offsets than the data's."""
    folder, names = family
    target = shutil.copytree(folder, tmp_path / "copy")
    content = (folder / "model.safetensors").read_bytes()
    start = header_of(content)
    header = json.loads(content[8:start])
    rng = np.random.default_rng(5)

    def attempt(fields):
        text = json.dumps(fields).encode()
        data = struct.pack("<Q", len(text)) + text + content[start:]
        (target / "model.safetensors").write_bytes(data)
        load_whole(target, names)

    changed = (mutate_fields(rng, header) for _ in range(MUTATIONS // 2))
    _, refused = outcomes(attempt, changed, [str(target)])
    assert refused > MUTATIONS // 3


@pytest.mark.long
def test_configurations_that_say_something_else_never_crash(family, tmp_path):
    folder, names = family
    target = shutil.copytree(folder, tmp_path / "copy")
    fields = json.loads((folder / "config.json").read_text())
    rng = np.random.default_rng(6)

    def attempt(changed):
        (target / "config.json").write_text(json.dumps(changed))
        load_whole(target, names)

    changed = (mutate_fields(rng, fields) for _ in range(MUTATIONS // 2))
    good, refused = outcomes(attempt, changed, [str(target), "config.json"])
    assert refused > MUTATIONS // 8
    assert good > 0


@pytest.mark.long
def test_damaged_indices_and_shards_never_crash(files, tmp_path):
    folder, _, names = files
    target = shutil.copytree(folder, tmp_path / "copy")
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    ordered = sorted(tensors)
    shards = {"a.safetensors": ordered[:5], "b.safetensors": ordered[5:]}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, target / shard)
    where = {name: shard for shard, own in shards.items() for name in own}
    index = target / "model.safetensors.index.json"
    fields = {"metadata": {"total_size": 1}, "weight_map": where}
    content = json.dumps(fields).encode()
    rng = np.random.default_rng(7)

    def attempt(data):
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        index.write_bytes(text)
        load_whole(target, names)

    def changed():
        yield from mutations(8, content, len(content), MUTATIONS // 2)
        for _ in range(MUTATIONS // 2):
            yield mutate_fields(rng, fields)

    good, refused = outcomes(attempt, changed(), [str(target)])
    assert refused > MUTATIONS // 3
    assert good > 0
    index.write_bytes(content)
    whole = (target / "b.safetensors").read_bytes()

    def attempt_shard(data):
        (target / "b.safetensors").write_bytes(data)
        load_whole(target, names)

    changed_shards = mutations(9, whole, header_of(whole), MUTATIONS // 2)
    outcomes(attempt_shard, changed_shards, [str(target)])


def test_damaged_gguf_never_crashes(files, tmp_path):
    _, file, names = files
    header = min(info.start for info in read_header(file).tensors.values())
    target = tmp_path / "damaged.gguf"

    def attempt(data):
        target.write_bytes(data)
        load_whole(target, names)

    changed = mutations(2, file.read_bytes(), header)
    good, refused = outcomes(attempt, changed, [str(target)])
    assert refused > MUTATIONS // 2
    assert good > 0


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_damaged_gguf_of_every_family_never_crashes(name, tmp_path):
    config = CASES[name]
    folder, target = saved(tmp_path / "hf", config), tmp_path / "model.gguf"
    half = gguf.GGMLQuantizationType.F16
    write_gguf(target, folder, config, quantisation=half)
    content, names = target.read_bytes(), parameters(load(target)[0]).keys()
    header = min(info.start for info in read_header(target).tensors.values())

    def attempt(data):
        target.write_bytes(data)
        load_whole(target, names)

    # A field of the header that no port reads may change and nothing follows.
    _, refused = outcomes(attempt, mutations(10, content, header, 40), [str(target)])
    assert refused > 20


def test_damaged_vocabularies_never_crash(files, tmp_path):
    folder, _, _ = files
    file = tmp_path / "whole.gguf"
    config = small_config(num_layers=1, width=16, hidden=16, vocab_size=300)
    write_gguf(file, folder, config, tokenizer=bpe_tokenizer(vocab_size=300))
    content = file.read_bytes()
    start = content.index(b"tokenizer.ggml.model")
    end = content.index(b"tokenizer.chat_template")

    def attempt(data):
        file.write_bytes(content[:start] + data)
        tokenizer = load_tokenizer(file)
        assert all(isinstance(tokenizer.token_bytes(i), bytes) for i in range(300))

    changed = mutations(3, content[start:], end - start)
    _, refused = outcomes(attempt, changed, [str(file)])
    assert refused > MUTATIONS // 2


def test_a_damaged_configuration_never_crashes(files, tmp_path):
    folder, _, names = files
    target = shutil.copytree(folder, tmp_path / "copy")
    content = (folder / "config.json").read_bytes()

    def attempt(data):
        (target / "config.json").write_bytes(data)
        load_whole(target, names)

    changed = mutations(4, content, len(content))
    outcomes(attempt, changed, [str(target), "config.json"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", None),
        ("num_hidden_layers", 2**31 - 1),
        ("query_pre_attn_scalar", 0),
        ("query_pre_attn_scalar", -4),
        ("final_logit_softcapping", "x"),
        ("attn_logit_softcapping", -1.0),
    ],
)
def test_fields_that_crashed_once_are_refused(name, value, tmp_path):
    folder = saved(tmp_path / "gemma3", family_configs()["gemma3"])
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {name: value}))

    def attempt(folder):
        load(folder)

    assert outcomes(attempt, [folder], [str(folder)]) == (0, 1)


def test_the_tensor_that_a_stopped_download_cuts_off_is_named(tmp_path):
    path = saved(tmp_path, small_config()) / "model.safetensors"
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    name = "model.layers.1.self_attn.k_proj.weight"
    begin, end = header[name]["data_offsets"]
    length = start + (begin + end) // 2
    path.write_bytes(content[:length])
    # Of all that is lost the first is named, though not the first in the header.
    says = f"tensor {name} should end at byte {start + end} of {length}"
    with pytest.raises(CheckpointError, match=re.escape(says)):
        load(tmp_path)
