"""The command line over a server: solve, scale, resume, dry runs and refusals."""

import json

import pytest
from scripted_server import ScriptedServer

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.cli import main
from tsi.experiments.experiment import change_models
from tsi.experiments.reproductions import get_reproduction


@pytest.fixture(scope="module")
def server():
    with ScriptedServer("llama.cpp") as server:
        yield server


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [{"id": f"p{i}", "question": "1+1", "answer": "1"} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def arguments(server, problems, *more: str) -> list[str]:
    return [
        *("--problems", str(problems), "--policy", f"served:{server.url}"),
        *("--reward", "outcome-verifier", "--max-steps", "3"),
        *("--max-step-tokens", "4", "--max-tokens", "9", "--delimiter", "\\n"),
        *more,
    ]


def scale(server, problems, out, *more: str) -> list[str]:
    methods = ("--methods", "smc", "best_of_n", "--budgets", "2")
    return [
        "scale",
        *arguments(server, problems, *methods, "--out", str(out), *more),
    ]


@pytest.mark.long
def test_scale_runs_resumes_and_reports(server, problems, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(scale(server, problems, out, "--no-progress")) == 0
    rows = (out / "rows.jsonl").read_text().splitlines()
    assert sum('"method"' in row for row in rows) == 6
    assert '"server": "llama.cpp b1-test"' in (out / "rows.jsonl").read_text()
    capsys.readouterr()
    asked = len([path for path, _ in server.requests])
    assert main(scale(server, problems, out, "--no-progress")) == 0
    probing = len([path for path, _ in server.requests]) - asked
    assert "All rows exist" in capsys.readouterr().err
    # Only the probe has asked for steps again.
    assert all(body["n_predict"] <= 8 for _, body in server.requests[-probing:])


def test_a_dry_run_names_steps_tokens_and_price(server, problems, tmp_path, capsys):
    more = ("--dry-run", "--served-price", "2.5", "--served-read-price", "1")
    assert main(scale(server, problems, tmp_path / "dry", *more)) == 0
    text = capsys.readouterr().out
    assert "12 rollouts over served:" in text
    assert "at 2.5 per million generated and 1 read" in text
    assert "tokens read to draw steps (beyond its cache)" in text
    assert "Nothing has been run or written." in text
    assert not (tmp_path / "dry").exists()


def test_solve_shows_the_posterior(server, problems, capsys):
    more = ("--method", "particle_filter", "--budget", "4")
    assert main(["solve", "p1", *arguments(server, problems, *more)]) == 0
    captured = capsys.readouterr()
    assert "Surviving genealogy" in captured.out
    assert "as reproducible as" in captured.err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ("--cache-dtype", "bfloat16"),
            "--cache-dtype is for models",
        ),
        (("--forced-end",), "a server does not give"),
        (("--reward", "judge-of-judges"), "There is no model named"),
        (("--method", "power_sampling", "--temperature", "0.5"), ""),
        (("--served-price", "-1"), "at least 0"),
        (("--served-price", "1", "--served-read-price", "nan"), "at least 0"),
        (("--served-read-price", "1"), "needs the price of generated tokens"),
    ],
)
def test_what_a_server_cannot_do_is_refused(server, problems, capsys, more, sentence):
    code = main(["solve", "p1", *arguments(server, problems, "--budget", "2", *more)])
    if sentence:
        assert code == 2
        assert sentence in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_sentence(problems, capsys):
    line = ["--problems", str(problems), "--policy", "served:http://127.0.0.1:9"]
    assert main(["solve", "p1", *line, "--reward", "none"]) == 2
    error = capsys.readouterr().err
    assert "cannot be reached" in error
    assert "Traceback" not in error


def test_a_model_that_a_server_lacks_is_named_with_those_it_has(server, capsys):
    assert main(["server", f"{server.url}#other"]) == 2
    assert "Known: tiny" in capsys.readouterr().err


def test_abilities_are_listed(server, capsys):
    assert main(["server", server.url]) == 0
    text = capsys.readouterr().out
    assert "repeat a step" in text
    assert "particle_gibbs_ancestor" in text.splitlines()[-1]


def test_served_options_need_a_served_policy(capsys):
    assert main(["solve", "7*8+5-9", "--served-price", "1"]) == 2
    assert "--served-price needs a policy behind a server" in capsys.readouterr().err


def test_a_study_runs_over_a_server_with_another_reward():
    published = get_reproduction("main_figure").full
    reward = "served-prm:http://b"
    (one,) = change_models(published, ["llama-8b"], "http://a:1", reward)
    hub_id = "meta-llama/Llama-3.1-8B-Instruct"
    assert one.models.policy == f"served:http://a:1#{hub_id}"
    assert one.models.served_tokenizer == hub_id
    assert one.models.reward == reward
    assert one.models.temperature == 0.8
    with pytest.raises(UnknownNameError, match="llama-8b"):
        change_models(published, ["llama-80b"])
    with pytest.raises(ConfigurationError, match="which no server has"):
        change_models(get_reproduction("weights").small, (), "http://a:1")
