"""`tsi scale` and `tsi solve` through the real engine, on untrained models."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tsi.experiments.cli import main
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import METHODS, sampler_of
from tsi.experiments.rows.results import read_rows
from tsi.experiments.rows.rows import answers_of, outcome
from tsi.experiments.tasks import get_task
from tsi.experiments.training.train_policy import task_tokenizer, tiny_config
from tsi.experiments.worlds.embedded_world import embedded_world
from tsi.experiments.worlds.provenance import sha256_of
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.loading.checkpoint import save
from tsi.results.ledger import ledger_of_first

COMMAND = ["scale", "--no-progress", "--num-problems", "5", "--budgets", "2", "4"]
COMMAND += ["--methods", "greedy", "self_consistency", "best_of_n", "smc"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    task = get_task("chain")
    tokenizer = task_tokenizer(task)
    config = tiny_config(task, tokenizer, width=16, hidden=16, num_layers=1)
    for seed, (name, kind) in enumerate({"p": LanguageModel, "r": RewardModel}.items()):
        model = kind(config, rngs=nnx.Rngs(seed))
        save(model, config, folder / name, tokenizer=tokenizer)
    return ["--policy", str(folder / "p"), "--reward", str(folder / "r")]


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("scale")
    assert main([*COMMAND, *models, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def world(models):
    return embedded_world("chain", 5, policy=models[1], reward=models[3])


@pytest.mark.long
@pytest.mark.parametrize("method", ["best_of_n", "self_consistency"])
def test_derived_rows_equal_a_run_of_their_own(world, finished, method):
    direct = world.engine.run(
        sampler_of(method, world.max_steps),
        jax.random.key(0),
        world.problems,
        2,
        extract=world.extract,
    )
    rows = read_rows(finished / "rows.jsonl")
    for problem, result in zip(world.problems, direct, strict=True):
        if not METHODS[method].reads_reward:
            ledger = ledger_of_first(result.slots, 2, 0.0, reads_reward=False)
            result = result._replace(ledger=ledger)
        answers = answers_of(result)
        is_right = {answer: world.is_correct(problem, answer) for answer in answers}
        expected = outcome(problem, result, is_right)
        row = rows[Cell(method, 2, 0, problem.id)]
        expected["min_ess"] = float(result.steps.ess[-1])
        rounded = ("log_evidence", "log_evidence_variance", "mean_reward", "min_ess")
        for field in rounded:
            both = [expected.pop(field), row.pop(field)]
            # A batch of another shape may sum in another order.
            assert np.allclose(
                *[np.nan if x is None else x for x in both], 1e-4, equal_nan=True
            )
        assert row.pop("seconds") is None
        expected.pop("seconds")
        assert {name: row[name] for name in expected} == expected
        row.pop("settings")
        # The texts are those of the shared pool.
        assert len(row.pop("texts_id")) == 12
        assert row.keys() == expected.keys()


@pytest.mark.long
def test_cut_file_is_completed_to_the_same_rows(models, finished, tmp_path):
    lines = (finished / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:-3]) + lines[-3][:-9])
    assert main([*COMMAND, *models, "--out", str(tmp_path)]) == 0
    completed = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(completed) == len(lines)
    for ours, undisturbed in zip(completed, lines, strict=True):
        rows = [json.loads(ours), json.loads(undisturbed)]
        if "settings" in rows[0]:
            # Somebody may commit while the tests run.
            assert all(row["settings"].pop("commit", "") != "" for row in rows)
            assert rows[0]["settings"] == rows[1]["settings"]
            continue
        seconds = [row.pop("seconds") for row in rows]
        # Of the shared rollouts, only the whole run's time is known.
        whole = (rows[0]["method"], rows[0]["budget"]) == ("best_of_n", 4)
        measured = rows[0]["method"] == "smc" or whole
        assert [x is not None and x > 0 for x in seconds] == [measured] * 2
        assert all(row.pop("settings_id") for row in rows)
        assert rows[0] == rows[1]


def test_rows_carry_full_provenance(models, finished):
    row = read_rows(finished / "rows.jsonl")[Cell("smc", 4, 0, 0)]
    settings = row["settings"]
    assert settings["policy_sha256"] == sha256_of(Path(models[1]))
    assert "commit" in settings
    for name in ("tsi", "jax", "platform", "task", "temperature", "reward_sha256"):
        assert settings[name] is not None
    assert settings["sampler"] == {"ess_fraction": 0.5, "weights": "odds"}
    assert row["reward_tokens"] > 0
    assert (
        read_rows(finished / "rows.jsonl")[Cell("greedy", 1, 0, 0)]["reward_tokens"]
        == 0
    )


def test_another_model_does_not_continue_the_file(models, finished, capsys):
    swapped = ["--policy", models[1], "--reward", models[3], "--temperature", "0.5"]
    assert main([*COMMAND, *swapped, "--out", str(finished)]) == 2
    assert "temperature is 1.0 there, 0.5 now" in capsys.readouterr().err


@pytest.mark.long
def test_solve_prints_ess_genealogy_and_posterior(models, capsys, tmp_path):
    pictures = ["--figures", str(tmp_path)]
    command = ["solve", "7*8+5-9", "--task", "chain", "--budget", "4"]
    assert main([*command, *pictures, *models]) == 0
    out = capsys.readouterr().out
    found = sorted(path.name for path in tmp_path.glob("*.png"))
    assert found == ["ess.png", "genealogy.png", "weights.png"]
    for part in ("Effective sample size of 4", "Surviving genealogy", "Answer post"):
        assert part in out
    assert "Right answer: 52" in out


def test_a_reward_model_of_another_alphabet_is_refused(models, tmp_path, capsys):
    task = get_task("countdown")
    tokenizer = task_tokenizer(task)
    config = tiny_config(task, tokenizer, width=16, hidden=16, num_layers=1)
    save(RewardModel(config, rngs=nnx.Rngs(0)), config, tmp_path, tokenizer=tokenizer)
    wrong = ["--policy", models[1], "--reward", str(tmp_path)]
    assert main(["solve", "7*8+5-9", *wrong]) == 2
    assert "has another tokenizer than" in capsys.readouterr().err


def test_reward_in_the_place_of_the_policy_is_refused(models, capsys):
    wrong = ["--policy", models[3], "--reward", models[3]]
    assert main(["solve", "7*8+5-9", *wrong]) == 2
    assert "must be a LanguageModel" in capsys.readouterr().err
