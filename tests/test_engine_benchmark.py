"""The engine's benchmark without its models: what is planned, kept and tabulated."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tsi.experiments.benchmarks import engine, step_law
from tsi.experiments.benchmarks.engine import Cell, Options, key_of, plan
from tsi.experiments.benchmarks.engine_table import table
from tsi.experiments.benchmarks.peer_its_hub import sigmoid
from tsi.experiments.benchmarks.peer_transformers import num_written
from tsi.experiments.benchmarks.questions import QUESTIONS, extract, problems
from tsi.experiments.benchmarks.step_law import (
    VOCABULARY,
    Law,
    counting_boundary,
    hazards,
    length_probabilities,
    num_weights,
    uniform_policy,
)
from tsi.loading.self_judge import self_judge
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.loading import catalogue
from tsi.models.loading.load_tokenizer import load_tokenizer

SMALL = Options(particles=(4, 16), repeats=2, rows=(1, 8))
FACTS = {
    "processor": "abacus",
    "machine": "wood",
    "cores": 2,
    "memory_bytes": 2**33,
    "jax": "0.1",
}


def row(cell: Cell, seconds: float, **more) -> dict:
    work = SMALL.work(cell)
    tokens = {"generated_tokens": 1000, "reward_tokens": 500, "peak_bytes": 2**30}
    return {
        **cell._asdict(),
        "work": work,
        "load": 0.5,
        "seconds": seconds,
        **tokens,
        **more,
    }


def cells_of(text: str, program: str) -> list[list[str]]:
    """The lines of a table that begin with a program."""
    lines = [line.strip("| ").split("|") for line in text.splitlines()]
    stripped = [[cell.strip() for cell in line] for line in lines]
    return [line for line in stripped if line[0] == program]


def test_a_plan_has_each_repeat_cold_and_then_warm_and_peers_once():
    cells = plan(SMALL, ("its_hub",))
    assert len(cells) == len(set(cells)) == 2 + 1 + 2 + 8
    ours = [cell for cell in cells if cell.size == 16 and cell.by in ("cold", "warm")]
    assert [(cell.by, cell.repeat) for cell in ours] == [
        ("cold", 0),
        ("warm", 0),
        ("cold", 1),
        ("warm", 1),
    ]
    assert not [cell for cell in plan(SMALL, ()) if cell.by in engine.PEERS]


def test_a_row_counts_for_its_own_cell_work_and_label_alone():
    cell, other = Cell("filter", "cold", 4), Cell("filter", "warm", 4)
    work = SMALL.work(cell)
    key = key_of(cell, work, "a")
    assert key == key_of(Cell(*cell), json.loads(json.dumps(work)), "a")
    assert key != key_of(other, work, "a")
    assert key != key_of(cell, work | {"max_rows": 1}, "a")
    assert key != key_of(cell, work, "b")


def test_peers_have_fewer_problems_and_the_same_limits():
    ours, theirs = (SMALL.work(Cell("filter", by, 4)) for by in ("cold", "its_hub"))
    assert theirs == ours | {"problems": SMALL.peer_problems}
    assert SMALL.work(Cell("filter", "transformers", 4))["problems"] == 1


def test_the_table_has_medians_and_ratios_at_the_largest_size_measured_below():
    cold, peer = Cell("filter", "cold", 4), Cell("filter", "its_hub", 4)
    rows = [row(cold._replace(repeat=i), s) for i, s in enumerate([5, 2, 4])]
    rows += [row(peer, 8, reward_tokens=0), row(Cell("filter", "cold", 16), 10)]
    rows += [
        row(Cell("filter", "its_hub", 32), 1),
        row(Cell("rows", "tsi", 8), 0.5, ceiling=4000),
    ]
    rows += [row(Cell("rows", "tsi", 33), 0.1), row(Cell("rows", "llama.cpp", 8), 0.2)]
    text = table(rows, FACTS, "abc")
    four, sixteen = cells_of(text, "tsi, cold")
    assert four[1:8] == ["4", "8", "3", "4.0", "1,000", "250.0", "2.00"]
    assert four[8:] == ["0.12", "0.50", "1.00", "–", "–", "–", "0.5"]
    assert sixteen[6:9] == ["100.0", "0.80", "0.01"]
    assert cells_of(text, "its_hub over llama.cpp")[0][6:10] == [
        "125.0",
        "1.00",
        "–",
        "–",
    ]
    assert cells_of(text, "8") == [
        ["8", "2,000", "5,000", "1.00", "1.00", "4,000", "0.50"]
    ]
    assert cells_of(text, "33") == [["33", "10,000", "–", "1.00", "–", "–", "–"]]
    alone = table([row(cold, 1)], FACTS, "abc")
    assert cells_of(alone, "tsi, cold")[0][7:9] == ["–", "–"]


def test_a_run_keeps_its_rows_and_measures_none_twice(tmp_path, monkeypatch):
    measured, broken = [], [16]

    def measure(self, cell):
        measured.append(cell)
        if cell.size in broken:
            raise engine.BenchmarkError("killed.")
        return {"seconds": 2.0, "generated_tokens": 10, "reward_tokens": 5}

    def table_text(folder) -> str:
        return (folder / "table.md").read_text()

    def lines() -> list[list[str]]:
        return cells_of(table_text(tmp_path), "tsi, cold")

    monkeypatch.setattr(engine.Bench, "measure", measure)
    assert engine.main(SMALL, tmp_path, "a") == 1
    assert measured == plan(SMALL, ())
    assert [line[1] for line in lines()] == ["4"]
    measured.clear()
    broken.clear()
    assert engine.main(SMALL, tmp_path, "a") == 0
    assert measured == [cell for cell in plan(SMALL, ()) if cell.size == 16]
    assert "10 tokens; utilisation –." in table_text(tmp_path)
    assert [line[1] for line in lines()] == ["4", "16"]
    measured.clear()
    assert engine.main(SMALL, tmp_path, "a") == 0
    assert not measured
    assert json.loads((tmp_path / "machine.json").read_text())["cores"]
    engine.main(SMALL, tmp_path, "b")
    assert measured == plan(SMALL, ())


def test_cold_starts_without_programs_and_warm_with_those_of_a_cold_one(
    tmp_path, monkeypatch
):
    started_with, folders = [], []

    def run_process(command, request, environment):
        folder = Path(environment["JAX_COMPILATION_CACHE_DIR"])
        folders.append(folder)
        folder.mkdir(exist_ok=True)
        started_with.append(len(list(folder.iterdir())))
        (folder / f"program-{started_with[-1]}").touch()
        return {}

    monkeypatch.setattr(engine, "run_process", run_process)
    bench = engine.Bench(SMALL, tmp_path)
    for by in ("cold", "warm", "cold", "warm"):
        bench.measure(Cell("filter", by, 4))
    assert started_with == [0, 1, 0, 1]
    # JAX finds no program of another folder.
    assert len({*folders}) == 1
    started_with.clear()
    bench.measure(Cell("filter", "warm", 16))
    assert started_with == [0, 1]
    bench.measure(Cell("rows", "tsi", 4))
    bench.measure(Cell("law", "tsi", 16))
    assert started_with == [0, 1, 0, 0]


def test_programs_of_a_measurement_that_failed_are_not_used(tmp_path, monkeypatch):
    started_with, failing = [], [True]

    def run_process(command, request, environment):
        folder = Path(environment["JAX_COMPILATION_CACHE_DIR"])
        folder.mkdir(exist_ok=True)
        started_with.append(len(list(folder.iterdir())))
        (folder / f"program-{len(started_with)}").touch()
        if failing:
            raise engine.BenchmarkError(failing.pop())
        return {}

    monkeypatch.setattr(engine, "run_process", run_process)
    for first in ("cold", "warm"):
        scratch = tmp_path / first
        scratch.mkdir()
        bench = engine.Bench(SMALL, scratch)
        failing[:], started_with[:] = ["killed."], []
        with pytest.raises(engine.BenchmarkError, match="killed"):
            bench.measure(Cell("filter", first, 4))
        bench.measure(Cell("filter", "warm", 4))
        # The first of the warm measurement fills the folder again.
        assert started_with == [0, 0, 1]


def test_the_size_of_the_policy_is_that_of_the_row():
    law = Cell("law", "tsi", 16)
    text = table([row(law, 2, num_weights=7_400_000)], FACTS, "abc")
    assert "8 steps, with a model of 7 million weights: 2.0 s for 1,000 tok" in text
    assert "8 steps: 2.0 s for 1,000 tok" in table([row(law, 2)], FACTS, "abc")
    # Embedding, last norm, and per layer two norms, query, key, value and the rest.
    layer = 2 * 8 + 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16
    config = DecoderConfig(32, 8, 16, 2, 2, 1, 4, max_length=64)
    assert num_weights(LanguageModel(config, rngs=nnx.Rngs(0))) == 264 + 2 * layer


def test_a_process_that_fails_is_named():
    with pytest.raises(engine.BenchmarkError, match="code 3"):
        engine.run_process(["sh", "-c", "exit 3"], "", {})
    assert engine.run_process(
        ["sh", "-c", "echo noise; cat"], "[1]", {"PATH": "/bin"}
    ) == [1]


def test_peers_that_are_not_installed_are_skipped_with_a_sentence(capsys, tmp_path):
    assert engine.peers_of(None) == ()
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    assert engine.peers_of(bare) == ()
    said = capsys.readouterr().out
    assert "--peers is not given" in said
    assert all(f"{peer} is skipped" in said for peer in engine.PEERS)


def test_arguments_of_a_process_give_the_same_work():
    work = SMALL.work(Cell("filter", "cold", 16))
    assert engine.command_arguments({"max_rows": 3, "model": "a b"}) == [
        "--max-rows",
        "3",
        "--model",
        "a b",
    ]
    assert set(work) == set(engine.filter_run.Work._fields)


def test_steps_follow_the_law_that_the_boundary_counts():
    law = Law()
    wanted = length_probabilities(hazards(law))
    assert wanted.sum() == pytest.approx(1.0)
    boundary = counting_boundary(hazards(law), VOCABULARY)
    ends = np.asarray(boundary.ends)
    assert ends[-1].all()
    found = length_probabilities(ends.mean(axis=1))
    assert np.abs(np.cumsum(found) - np.cumsum(wanted)).max() < 2e-4
    lengths = np.arange(1, law.cut + 1)
    drawn = np.ceil(np.random.default_rng(0).lognormal(np.log(60) - 0.5, 1.0, 10**6))
    assert (found * lengths).sum() == pytest.approx(
        np.minimum(drawn, law.cut).mean(), rel=0.005
    )
    state = np.asarray(boundary.next_state)
    assert (state[:-1] == np.arange(1, law.cut)[:, None]).all()


def test_all_tokens_are_alike_to_the_policy_of_the_law():
    policy = uniform_policy(32, 64)
    logits = np.asarray(policy(jnp.asarray([[1, 2, 3]])))
    assert (logits == logits[..., :1]).all()


@pytest.mark.long
def test_a_run_by_the_law_draws_its_mean():
    law = Law(problems=2, particles=16, steps=2, mean=4.0, sigma=0.5, cut=12)
    found = step_law.run(law)
    lengths = length_probabilities(hazards(law)) * np.arange(1, law.cut + 1)
    assert found["mean_steps"] == 2
    assert found["num_weights"] == 4_983_040
    # 64 steps with a standard deviation of 2.2.
    assert found["mean_step_tokens"] == pytest.approx(lengths.sum(), abs=1.0)


SMOLLM2 = catalogue.location("smollm2-135m")


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.exists(), reason="smollm2-135m is not in the cache")
def test_a_request_to_a_peer_reads_as_what_the_engine_reads():
    work = engine.filter_run.Work(particles=2, problems=2)
    tokenizer = load_tokenizer(SMOLLM2)
    request = engine.filter_run.request(work, tokenizer, str(SMOLLM2))
    judge = self_judge(tokenizer, engine.filter_run.QUESTION)
    asked = tokenizer.encode(request["question"], allow_special=True)
    assert asked == [*judge.question]
    assert request["end"] == "<|im_end|>"
    for problem, text in zip(problems(2), request["prompts"].values(), strict=True):
        prompt = tokenizer.encode_prompt(problem.prompt)
        assert tokenizer.encode(text, allow_special=True) == prompt
    small = work._replace(max_steps=2, max_step_tokens=4, max_tokens=8)
    found = engine.filter_run.run(small)
    assert 4 < found["generated_tokens"] <= 32
    assert found["compile_seconds"] > 0


def test_questions_have_answers_that_a_text_can_give():
    assert len(problems(8)) == len(QUESTIONS) == 8
    for _, answer in QUESTIONS:
        assert extract(f"First 3 and then\n\nThe answer is ${answer}.") == answer
    assert extract("It costs 1,234.00 dollars") == "1234"
    assert extract("none") is None


def test_counts_and_scores_of_the_peers():
    assert num_written([5, 6, 2, 2, 2], [2]) == 3
    assert num_written([5, 6], [2, 7]) == 2
    assert sigmoid(0.0) == 0.5
    assert sigmoid(1000.0) == 1.0
    assert sigmoid(-1000.0) == 0.0
    assert sigmoid(2.0) == pytest.approx(1 / (1 + 2.718281828459045**-2))
