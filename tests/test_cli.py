"""The command line: one sentence for what is wrong, and exit codes."""

import subprocess
import sys
import warnings

import pytest

from tsi.bench import conformance
from tsi.errors import InvalidWeightWarning
from tsi.experiments.cli import main
from tsi.experiments.command import exit_code


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scale", "--methods", "magic"], "no method named 'magic'. Known: ab_mcts"),
        (["scale", "--task", "chess"], "no task named 'chess'. Known: aime24"),
        (["scale", "--budgets", "0"], "budget 0 = 0"),
        (["scale", "--num-problems", "0"], "num_problems must be at least 1"),
        (["solve", "1+1+1+1", "--method", "magic"], "no method named"),
        (["solve", "1+1+1+1", "--budget", "0"], "budget must be at least 1"),
        (["solve", "what is love"], "not a chain problem"),
        (["solve", "1+1+1+1", "--policy", "gpt"], "no model named 'gpt'. Known"),
        (["models", "get", "gpt"], "no model named 'gpt'. Known"),
        (["models", "get"], "no model named"),
        (["report"], "needs a folder with rows.jsonl"),
        (["report", "nowhere"], "There is no results file"),
        (["models", "burn"], "no models action named 'burn'. Known: get, list"),
        (["check", "nowhere"], "write module:function"),
        (["scale", "--process-id", "1"], "need --distributed"),
        (
            ["scale", "--distributed", "--process-id", "1"],
            "one of the three is missing",
        ),
        (["scale", "--out", "nothing://x"], "nothing://x cannot be used"),
    ],
)
def test_error_is_one_sentence_and_exit_code_two(arguments, sentence, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_paper_prints_the_published_factors(capsys):
    assert main(["paper"]) == 0
    out = capsys.readouterr().out
    assert "19.4" in out
    assert "54.0 to 67.0" in out


def test_models_are_listed(capsys):
    assert main(["models"]) == 0
    assert "smollm2-135m" in capsys.readouterr().out


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_check_turns_the_verdict_into_an_exit_code(passed, code, capsys, monkeypatch):
    asked = []

    def judge(make_sampler, *, num_particles, num_runs):
        asked.append((make_sampler().select, num_particles, num_runs))
        return conformance.Report((conformance.Check("evidence", passed, "z = 9"),))

    monkeypatch.setattr(conformance, "check_sampler", judge)
    maker = "tsi.samplers.self_consistency:self_consistency"
    assert main(["check", maker, "--num-particles", "4"]) == code
    assert asked == [("vote", 4, 20_000)]
    assert "evidence" in capsys.readouterr().out


MODULE = """
from tsi import Sampler, samplers


def needs(num_islands): ...
def raises(): return 1 / 0
def nothing(): ...
def leaves(): raise SystemExit(3)
def hollow(): return Sampler(None, None, None, None)
def other(): return samplers.smc()._replace(ask=lambda: 1)


instance = samplers.smc()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Modules of a user, in the working folder."""
    (tmp_path / "their_sampler.py").write_text(MODULE)
    (tmp_path / "their_needs.py").write_text("import a_package_that_is_absent\n")
    (tmp_path / "their_exit.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "their_error.py").write_text("open('absent.json')\n")
    (tmp_path / "their_syntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "their_sampler", raising=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(
            (name, "is not the name of a function")
            for name in ("", ":", "a:", ":b", "a:b:c", "a")
        ),
        ("nowhere_at_all:f", "There is no module nowhere_at_all"),
        ("os.path.deeper:f", "There is no module os.path.deeper"),
        ("their_sampler.py:f", "a path; its module may be their_sampler"),
        ("./their_sampler:f", "'./their_sampler' is not the name of a module"),
        (".their_sampler:f", "'.their_sampler' is not the name of a module"),
        ("their_needs:f", "No module named 'a_package_that_is_absent' (at their_needs"),
        ("their_exit:f", "their_exit cannot be imported: SystemExit: 0"),
        ("their_error:f", "cannot be imported: FileNotFoundError"),
        ("their_syntax:f", "cannot be imported: SyntaxError"),
        ("os:path", "is of type module, not a function"),
        ("os:nothing", "os has no 'nothing'"),
        ("os:getcwd", "'os:getcwd' returned is of type str"),
        ("their_sampler:instance", "is of type Sampler, not a function"),
        ("their_sampler:needs", "needs arguments (num_islands)"),
        ("their_sampler:raises", "ZeroDivisionError: division by zero (at their_sam"),
        ("their_sampler:leaves", "raised SystemExit: 3"),
        ("their_sampler:nothing", "returned is None"),
        ("their_sampler:hollow", "a sampler whose init is None"),
        ("their_sampler:other", "cannot be checked: TypeError"),
    ],
)
def test_a_name_that_makes_no_sampler_is_a_sentence(name, words, module, capsys):
    assert main(["check", name, "--num-runs", "20"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("checks", "start", "end"),
    [
        ([("evidence, smooth", True)], "PASSED: keeps all 1 promises.", "target."),
        (
            [("evidence, smooth", False), ("posterior, smooth", True), ("keys", None)],
            "FAILED: breaks 1 of 2 promises (evidence, smooth), 1 skipped.",
            "target.",
        ),
        ([("target, smooth", None), ("keys", True)], "PASSED: keeps all 1", "checked."),
    ],
)
def test_check_ends_with_a_verdict_and_its_thresholds(
    checks, start, end, capsys, monkeypatch
):
    made = tuple(conformance.Check(name, passed, "") for name, passed in checks)
    report = conformance.Report(made)
    monkeypatch.setattr(conformance, "check_sampler", lambda *_, **__: report)
    main(["check", "tsi.samplers:smc", "--num-particles", "4", "--num-runs", "5000"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(start)
    assert "evidence |z| < 4, posterior p > 0.0001; N = 4, 5,000 runs" in last
    assert last.endswith(end)


def test_help_imports_nothing_heavy():
    script = (
        "import sys, tsi.experiments.cli as cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'flax', 'scipy', 'matplotlib', 'transformers', 'optax'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == 0
    assert b"scale" in done.stdout


def test_warnings_of_this_package_are_sentences(capsys):
    def command():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = print_warning
            warnings.warn("Something is odd.", InvalidWeightWarning, stacklevel=1)
            warnings.warn("Something else.", UserWarning, stacklevel=1)

    def print_warning(message, category, filename, lineno, file=None, line=None):
        text = warnings.formatwarning(message, category, filename, lineno, line)
        sys.stderr.write(text)

    assert exit_code(command) == 0
    error = capsys.readouterr().err
    assert error.startswith("tsi: Something is odd.\n")
    assert "UserWarning: Something else." in error
