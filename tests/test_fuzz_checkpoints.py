"""Damaged files give a CheckpointError or a whole model: no crash, no huge allocation.

Every mutation is one that a broken download or an attacker could make: bytes flipped,
lengths replaced by absurd ones, ranges cut out, repeated or overwritten.
"""

import shutil
import tracemalloc

import numpy as np
import pytest
from small_checkpoints import bpe_tokenizer, parameters, saved, small_config, write_gguf

from tsi.errors import CheckpointError
from tsi.models.checkpoint import load
from tsi.models.gguf import read_header
from tsi.models.tokenizer import load_tokenizer

MUTATIONS = 200
MAX_PEAK = 32 << 20
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


def outcomes(rng, content, header, attempt):
    good, refused = 0, 0
    for _ in range(MUTATIONS):
        tracemalloc.start()
        try:
            attempt(mutate(rng, content, header))
            good += 1
        except CheckpointError:
            refused += 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MAX_PEAK
    return good, refused


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


def test_damaged_safetensors_never_crash(files, tmp_path):
    folder, _, names = files
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (folder / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")

    def attempt(data):
        (copy / "model.safetensors").write_bytes(data)
        load_whole(copy, names)

    good, refused = outcomes(np.random.default_rng(1), content, header, attempt)
    assert refused > MUTATIONS // 2
    assert good > 0


def test_damaged_gguf_never_crashes(files, tmp_path):
    _, file, names = files
    header = min(info.start for info in read_header(file).tensors.values())

    def attempt(data):
        target = tmp_path / "damaged.gguf"
        target.write_bytes(data)
        load_whole(target, names)

    rng = np.random.default_rng(2)
    good, refused = outcomes(rng, file.read_bytes(), header, attempt)
    assert refused > MUTATIONS // 2
    assert good > 0


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

    _, refused = outcomes(
        np.random.default_rng(3), content[start:], end - start, attempt
    )
    assert refused > MUTATIONS // 2


def test_a_damaged_configuration_never_crashes(files, tmp_path):
    folder, _, names = files
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (folder / "config.json").read_bytes()

    def attempt(data):
        (copy / "config.json").write_bytes(data)
        load_whole(copy, names)

    outcomes(np.random.default_rng(4), content, len(content), attempt)
