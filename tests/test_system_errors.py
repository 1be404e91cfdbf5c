"""What a system refuses is one sentence with exit code 2, and nothing is lost by it."""

import ast
import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
import tyro
from flax import nnx

from tsi.errors import CheckpointError, ResultsError, TsiError
from tsi.experiments import append_only, cli
from tsi.experiments.append_only import AppendOnlyFile
from tsi.experiments.command import exit_code
from tsi.experiments.scaling.results import Cell, ResultsFile, read_rows
from tsi.experiments.training.train_value import train_value
from tsi.models import files
from tsi.models.files import (
    REASONS,
    check_writable,
    describe_error,
    replace_file,
    write_text,
)
from tsi.models.heads import ValueHead
from tsi.models.loading.value_head import load_value_head, save_value_head
from tsi.models.tensors.safetensors import open_safetensors, read_json

EXPERIMENTS = Path(cli.__file__).parent
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


@pytest.mark.parametrize("number", [*REASONS, errno.ENODEV, errno.EINVAL])
def test_every_error_number_is_a_sentence_with_place_and_remedy(number, capsys):
    def command():
        raise OSError(number, os.strerror(number), "/results/rows.jsonl")

    assert exit_code(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("tsi: /results/rows.jsonl ")
    assert error.endswith(".\n")
    assert error.count("\n") == 1
    assert ("; " in error) or (", " in error)
    assert "Errno" not in error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("I/O error: No space left on device (os error 28)"),
        ValueError("Failed to write: No space left [os_error_code='28']"),
        OSError("No space left on device (os error 28)"),
    ],
)
def test_an_error_that_a_library_tells_in_words_is_a_sentence_too(error, capsys):
    def command():
        raise error

    assert exit_code(command) == 2
    assert "the disk is full; make room" in capsys.readouterr().err


def test_a_mistake_in_the_program_keeps_its_traceback():
    def command():
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        exit_code(command)


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", b"caf\xe9", "x" * 5000])
def test_a_name_of_a_file_is_shown_on_one_short_line(name):
    text = describe_error(OSError(errno.EACCES, "denied", name))
    assert text.isprintable()
    assert text.isascii()
    assert len(text) < 400


def test_every_command_and_module_ends_through_exit_code():
    bare = []
    for path in sorted(EXPERIMENTS.rglob("*.py")):
        source = path.read_text()
        calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
        texts = [ast.unparse(call) for call in calls]
        runs_tyro = any(
            t.startswith(("tyro.cli(", "tyro.extras.subcommand")) for t in texts
        )
        wrapped = any(t.startswith("exit_code(lambda: tyro.") for t in texts)
        if runs_tyro and not wrapped:
            bare.append(path.name)
    assert not bare


def places(tmp_path):
    """Paths of files that cannot be written, by what is in their way."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "rows.jsonl").mkdir(parents=True)
    for name in ("fifo", "device"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo" / "rows.jsonl")
    (tmp_path / "device" / "rows.jsonl").symlink_to("/dev/full")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    return {
        "a file where a folder is meant": tmp_path / "file" / "sub" / "rows.jsonl",
        "is not a folder": tmp_path / "file" / "rows.jsonl",
        "a folder where a file is meant": tmp_path / "folder" / "rows.jsonl",
        "but a fifo": tmp_path / "fifo" / "rows.jsonl",
        "but a device": tmp_path / "device" / "rows.jsonl",
        "a symbolic link to": tmp_path / "broken" / "rows.jsonl",
        "a longer name": tmp_path / ("n" * 300) / "rows.jsonl",
    }


def test_a_place_that_cannot_be_written_is_refused_and_left_as_it_is(tmp_path):
    for words, path in places(tmp_path).items():
        with pytest.raises(ResultsError, match=words) as refused:
            AppendOnlyFile(path)
        assert "another run" not in str(refused.value)
        if words == "a symbolic link to":
            # Links are followed where a whole file is written.
            continue
        with pytest.raises(OSError) as raised:
            write_text(path, "text")
        assert words in describe_error(raised.value)
        with pytest.raises(OSError):
            check_writable(path)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "fifo" / "rows.jsonl").is_fifo()
    assert Path("/dev/full").is_char_device()


def test_commands_refuse_a_place_before_their_work(tmp_path, capsys, monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("tsi.experiments.training.train_value.embedded_world", work)
    monkeypatch.setattr("tsi.experiments.worlds.embedded_world.embedded_world", work)
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    figures = ["solve", "1+1+1+1", "--figures", str(tmp_path / "file")]
    assert cli.main(figures) == 2
    assert "not a folder" in capsys.readouterr().err
    for option in (["solve", "1+1+1+1", "--figures"], ["profile", "--trace"]):
        assert cli.main([*option, "gs://bucket/x"]) == 2
        assert "looks like an address of another file" in capsys.readouterr().err
    assert not Path("gs:").exists()
    value = ["--out", str(tmp_path)]
    assert exit_code(lambda: tyro.cli(train_value, args=value)) == 2
    assert f"{tmp_path} is a folder where a file is meant" in capsys.readouterr().err


def test_scale_and_policies_at_impossible_paths_are_sentences(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "fifo")
    few = ["scale", "--num-problems", "1", "--budgets", "1", "--no-progress"]
    for arguments in (
        [*few, "--methods", "self_consistency", "--out", str(tmp_path / "file")],
        ["solve", "1+1+1+1", "--policy", "/" + "n" * 300],
        ["solve", "1+1+1+1", "--policy", str(tmp_path / "fifo")],
        ["solve", "1+1+1+1", "--policy", str(tmp_path / "file" / "model.gguf")],
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("tsi: ")
        assert error.count("\n") == 1


def run(arguments, **options):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, **options)


PAPER = "import sys; from tsi.experiments.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(("command", "unbuffered"), [("paper", ""), ("--help", "1")])
def test_output_that_cannot_be_written_is_a_sentence(command, unbuffered):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PAPER, command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 2
    assert "output cannot be written, because the disk is full;" in done.stderr
    assert done.stderr.count("\n") == 1


def test_output_that_nobody_reads_ends_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PAPER, "paper"]
    # Buffered output meets the closed pipe once more when Python ends.
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=env)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_module_that_finds_no_file_says_so(tmp_path):
    done = run(
        ["tsi.experiments.scaling.readme"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tsi: README.md does not exist")
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    script = (
        "import sys; from tsi.experiments.command import exit_code\n"
        "sys.exit(exit_code(lambda: print(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, b"caf\xe9"]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stdout) == (0, rb"caf\udce9" + b"\n")


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

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(CheckpointError, match="permission denied"):
        read_json(tmp_path / "other.json")


def test_what_tsi_refuses_on_purpose_and_a_stop_keep_their_codes(capsys):
    def raising(error):
        def command():
            raise error

        return command

    assert exit_code(raising(TsiError("No."))) == 2
    assert exit_code(raising(KeyboardInterrupt())) == 130
    assert exit_code(lambda: 1) == 1
    assert exit_code(lambda: None) == exit_code(lambda: (1, 2)) == 0
    assert capsys.readouterr().err.startswith("tsi: No.\ntsi: stopped")


def test_a_network_that_fails_is_not_called_a_file():
    for error in (ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError()):
        assert describe_error(error).startswith("The network failed")
    assert files.format_path("a") == "a"
