"""Files that a system refuses are one sentence, and what was written is kept."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from tsi.errors import CheckpointError, ResultsError
from tsi.experiments.files import append_only
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.plans.cell import Cell
from tsi.experiments.rows.results import ResultsFile, read_rows
from tsi.models.files import (
    describe_error,
    replace_file,
    write_text,
)
from tsi.models.heads import ValueHead
from tsi.models.loading.value_head import load_value_head, save_value_head
from tsi.models.tensors.safetensors import open_safetensors, read_json

LINE = b'{"a": 1}\n'


@pytest.fixture(autouse=True)
def _never_waits():
    """What waits for the other end of a fifo would wait for good."""
    signal.alarm(100)
    yield
    signal.alarm(0)


@contextlib.contextmanager
def full_disk(num_bytes):
    """Files beyond a size are refused by the system itself, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refuse(monkeypatch, name, number):
    """Let a function of `os` fail, once half of its work is done where it writes."""
    true = getattr(os, name)

    def failing(*arguments, **options):
        if name == "write":
            descriptor, data = arguments
            true(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize("name", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fills_leaves_whole_lines_and_the_run_resumes(
    tmp_path, monkeypatch, name, number
):
    cells = [Cell("smc", 1, 0, problem) for problem in range(6)]

    def rows(part):
        return [(cell, {"correct": True}) for cell in part]

    for path in (tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"):
        with ResultsFile(path, {}) as results:
            results.append(rows(cells[:2]))
            if path.name == "rows.jsonl":
                before = path.read_bytes()
                with monkeypatch.context() as patch:
                    refuse(patch, name, number)
                    with pytest.raises(ResultsError) as refused:
                        results.append(rows(cells[2:4]))
                assert str(path) in str(refused.value)
                assert "What was written before is kept" in str(refused.value)
                assert path.read_bytes() == before
                assert list(read_rows(path)) == cells[:2]
        with ResultsFile(path, {}) as results:
            results.append(rows(results.find_missing(cells)))
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_file_that_is_removed_under_a_run_is_put_back(tmp_path, capsys):
    path = tmp_path / "out" / "rows.jsonl"
    with AppendOnlyFile(path) as file:
        file.append(LINE)
        path.unlink()
        path.parent.rmdir()
        file.append(LINE)
        file.append(LINE)
        assert "is written again" in capsys.readouterr().err
        with pytest.raises(ResultsError, match="another run"):
            AppendOnlyFile(path)
        path.unlink()
        path.write_bytes(b"{}\n")
        with pytest.raises(ResultsError, match="replaced by another file"):
            file.append(LINE)
    assert path.read_bytes() == b"{}\n"


def _refused_lock(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_that_is_held_is_another_run(tmp_path, monkeypatch):
    _refused_lock(monkeypatch, errno.EWOULDBLOCK)
    with pytest.raises(ResultsError, match="another run"):
        AppendOnlyFile(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("number", sorted(append_only.NO_LOCKS))
def test_without_locks_the_run_goes_on_with_a_warning(
    tmp_path, monkeypatch, number, capsys
):
    _refused_lock(monkeypatch, number)
    with AppendOnlyFile(tmp_path / "rows.jsonl") as file:
        file.append(LINE)
    assert (tmp_path / "rows.jsonl").read_bytes() == LINE
    error = capsys.readouterr().err
    assert "has no locks" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOMEM])
def test_a_lock_that_fails_otherwise_is_not_called_another_run(
    tmp_path, monkeypatch, number
):
    _refused_lock(monkeypatch, number)
    with pytest.raises(ResultsError) as refused:
        AppendOnlyFile(tmp_path / "rows.jsonl")
    assert "another run" not in str(refused.value)
    assert "rows.jsonl" in str(refused.value)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("name", ["mkdir", "replace"])
def test_a_refusal_at_any_call_keeps_the_file_and_names_it(
    tmp_path, monkeypatch, name, number
):
    path = tmp_path / "table.md"
    path.write_text("old")
    with monkeypatch.context() as patch:
        refuse(patch, name, number)
        with pytest.raises(OSError) as raised:
            write_text(path, "new")
    assert raised.value.filename == str(path)
    assert raised.value.errno == number
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.md"]


def test_a_whole_file_keeps_links_and_usual_permissions(tmp_path):
    (tmp_path / "real.md").write_text("old")
    (tmp_path / "table.md").symlink_to("real.md")
    with replace_file(tmp_path / "table.md") as place:
        place.write_text("new")
        assert (tmp_path / "real.md").read_text() == "old"
    assert (tmp_path / "table.md").is_symlink()
    assert (tmp_path / "real.md").read_text() == "new"
    (tmp_path / "usual").touch()
    modes = [(tmp_path / n).stat().st_mode for n in ("real.md", "usual")]
    assert modes[0] == modes[1]


def test_a_model_that_does_not_fit_the_disk_leaves_the_one_before(tmp_path):
    path = tmp_path / "head.safetensors"
    head = ValueHead(64, rngs=nnx.Rngs(0))
    save_value_head(head, path)
    head.summary.kernel[...] = 2 * head.summary.kernel[...]
    with full_disk(100), pytest.raises(OSError) as raised:
        save_value_head(head, path)
    assert "would be larger than is allowed" in describe_error(raised.value)
    assert raised.value.filename == str(path)
    before = load_value_head(path, 64).summary.kernel[...]
    assert jnp.array_equal(2 * before, head.summary.kernel[...])
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="but a fifo"):
        read_json(tmp_path / "config.json")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError) as refused:
        open_safetensors(tmp_path / "folder.safetensors")
    assert "download" not in str(refused.value)
    (tmp_path / "other.json").write_text(json.dumps({}))

    def deny(*_, **__):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Path, "read_text", deny)
    with pytest.raises(CheckpointError, match="permission denied"):
        read_json(tmp_path / "other.json")
