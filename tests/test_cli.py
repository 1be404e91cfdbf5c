"""The command line: one sentence for what is wrong, and exit codes."""

import subprocess
import sys

import pytest

from tsi import conformance
from tsi.experiments.cli import main


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scale", "--methods", "magic"], "no method named 'magic'. Known: ab_mcts"),
        (["scale", "--task", "chess"], "no task named 'chess'. Known: chain"),
        (["scale", "--budgets", "0"], "budget 0 = 0"),
        (["scale", "--num-problems", "0"], "num_problems must be at least 1"),
        (["solve", "1+1+1+1", "--method", "magic"], "no method named"),
        (["solve", "1+1+1+1", "--budget", "0"], "budget must be at least 1"),
        (["solve", "what is love"], "not a chain problem"),
        (["solve", "1+1+1+1", "--policy", "gpt"], "no model named 'gpt'. Known"),
        (["models", "get", "gpt"], "no model named 'gpt'. Known"),
        (["models", "get"], "no model named"),
        (["models", "burn"], "no models action named 'burn'. Known: get, list"),
        (["check", "nowhere"], "write module:function"),
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
