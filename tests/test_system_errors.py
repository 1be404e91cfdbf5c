"""What a system refuses is one sentence with exit code 2, and nothing is lost by it."""

import ast
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from tsi.errors import ResultsError, TsiError
from tsi.experiments import cli
from tsi.experiments.command import exit_code
from tsi.experiments.experiment import read_experiments
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.tasks.champ import read_champ
from tsi.experiments.tasks.data_files import file_sha256
from tsi.experiments.tasks.own_file import read_examples
from tsi.experiments.tasks.problem_file import read_problems
from tsi.experiments.training.train_value import train_value
from tsi.models import files
from tsi.models.files import (
    REASONS,
    check_writable,
    describe_error,
    write_text,
)
from tsi.models.gguf.file import read_header
from tsi.models.tensors.safetensors import open_safetensors, read_json

EXPERIMENTS = Path(cli.__file__).parent
LINE = b'{"a": 1}\n'


@pytest.fixture(autouse=True)
def _never_waits():
    """What waits for the other end of a fifo would wait for good."""
    signal.alarm(100)
    yield
    signal.alarm(0)


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
        "a file where a folder is expected": tmp_path / "file" / "sub" / "rows.jsonl",
        "is not a folder": tmp_path / "file" / "rows.jsonl",
        "a folder where a file is expected": tmp_path / "folder" / "rows.jsonl",
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
    assert f"{tmp_path} is a folder where a file is expected" in capsys.readouterr().err


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


def test_commands_that_read_a_fifo_say_so_and_do_not_wait(tmp_path, capsys):
    few = ["--num-problems", "1", "--budgets", "1", "--no-progress"]
    for name in ("study.py", "problems.csv"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "rows.jsonl")
    run, problems = str(tmp_path / "run"), str(tmp_path / "problems.csv")
    for arguments in (
        ["run", str(tmp_path / "study.py")],
        ["regrade", run, "--problems", problems],
        ["regrade", run],
        ["regrade", f"{run}/rows.jsonl"],
        ["report", run],
        ["scale", *few, "--out", run],
        ["scale", *few, "--problems", problems, "--out", str(tmp_path / "new")],
        ["solve", "1+1", "--problems", problems],
        ["solve", "1+1", "--few-shot", problems],
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert "is not a regular file but a fifo" in error
        assert error.startswith("tsi: ")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    "read",
    [
        file_sha256,
        open_safetensors,
        read_champ,
        read_examples,
        read_experiments,
        read_header,
        read_json,
        read_problems,
    ],
)
def test_a_function_that_reads_a_file_does_not_wait_for_a_fifo(read, tmp_path):
    os.mkfifo(tmp_path / "fifo.csv")
    with pytest.raises((TsiError, OSError), match="a fifo"):
        read(tmp_path / "fifo.csv")


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
        ["tsi.experiments.reports.readme"],
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
