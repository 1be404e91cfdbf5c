"""Kept particles: complete after kills, checked when read, and enough to regrade."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_world import fake_world, read_answer, vary

from tsi.errors import ConfigurationError, ResultsError
from tsi.experiments.files.gzip_members import compress_member
from tsi.experiments.grading.grade import Grade
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.plans.plan import Batch, make_plan
from tsi.experiments.rows.graded_run import Grading
from tsi.experiments.rows.kept_particles import record_of
from tsi.experiments.rows.particle_files import (
    ParticlesFile,
    particle_files,
    read_particles,
)
from tsi.experiments.rows.regrade import regrade
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan

METHODS = ("greedy", "self_consistency", "weighted_best_of_n", "smc", "rebase")
METHODS += ("mcts", "quest", "particle_gibbs", "adaptive_consistency", "adaptive_smc")
PLAN = make_plan(METHODS, (1, 2, 8), 2)


def fake_grading(settings):
    def grade(pairs):
        return [Grade(answer == problem.answer) for problem, answer in pairs]

    return Grading(read_answer, grade)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "rows.jsonl"
    run_plan(PLAN, fake_world(7), path, progress=False, keep="all")
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run."""
    for path in finished.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "rows.jsonl"


def particles_of(path):
    """Everything that is kept, by run."""
    return {run.key: run for run in read_particles(path)}


def as_text(runs):
    return {key: str(run) for key, run in runs.items()}


@pytest.mark.long
def test_every_row_has_its_texts_and_a_run_is_kept_once(finished):
    runs = particles_of(finished)
    for cell, row in read_rows(finished).items():
        shared = cell.method in ("self_consistency", "weighted_best_of_n")
        method, size = (
            ("weighted_best_of_n", 8) if shared else (cell.method, cell.budget)
        )
        kept = runs[method, size, cell.seed, cell.problem]
        answers = kept.particles.answers[: cell.budget if shared else None]
        assert sum(a is not None for a in answers) == row["num_answered"]
        if not shared:
            assert kept.selected == row["selected"]
            assert kept.settings == row["settings"]
        assert kept.problem.prompt == row["prompt"]
        assert kept.steps.ancestors.shape[1] == len(answers) or shared
    assert len(runs) < len(read_rows(finished))


@pytest.mark.parametrize("keep", ["all", "solutions", "none"])
def test_what_is_kept_is_what_was_asked_for(tmp_path, keep):
    path, plan = tmp_path / "rows.jsonl", make_plan(["smc"], [4], 1)
    run_plan(plan, fake_world(3), path, progress=False, keep=keep)
    if keep == "none":
        assert [x.name for x in tmp_path.iterdir()] == ["rows.jsonl"]
        with pytest.raises(ResultsError, match="There is no file of particles for"):
            list(read_particles(path))
        return
    for kept in read_particles(path):
        assert (kept.steps is not None) == (keep == "all")
        assert kept.particles.log_weights.shape == (4,)
    # Other programs read the file too.
    with gzip.open(tmp_path / "rows.particles.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    assert [r["texts"] for r in records[1:]] == [
        kept.particles.texts for kept in read_particles(path)
    ]


def has_rows(path):
    """Whether a file exists and has a whole row; its header is a line without row."""
    return path.exists() and any(
        "problem" in line for line in path.read_text().splitlines(True)[:-1]
    )


@pytest.mark.long
@pytest.mark.parametrize("when", [0.4, 1.2])
def test_a_kill_at_any_moment_loses_no_text_of_a_row(tmp_path, when):
    script = (
        "import sys; from pathlib import Path\n"
        "from fake_world import fake_world\n"
        "from test_kept_particles import PLAN, run_plan\n"
        "print('begins', flush=True)\n"
        "world = fake_world(7, sleep=float(sys.argv[2]), rows=16)\n"
        "run_plan(PLAN, world, Path(sys.argv[1]), progress=False)\n"
    )
    paths = tmp_path / "rows.jsonl", tmp_path / "whole.jsonl"
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(
        [*command, str(paths[0]), "0.01"],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    time.sleep(when)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if has_rows(paths[0]):
        kept = {key[0]: None for key in particles_of(paths[0])}
        for cell in read_rows(paths[0]):
            source = {"self_consistency": "weighted_best_of_n"}.get(
                cell.method, cell.method
            )
            assert source in kept
    for path in paths:
        run_plan(PLAN, fake_world(7, rows=16), path, progress=False)
    assert as_text(particles_of(paths[0])) == as_text(particles_of(paths[1]))
    rows = [
        {cell: row | {"seconds": 0} for cell, row in read_rows(path).items()}
        for path in paths
    ]
    assert rows[0] == rows[1]
    assert regrade(paths[0], fake_grading).num_changed == 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_an_incomplete_last_member_is_set_aside_and_the_rest_is_read(
    run, tmp_path, seed, capsys
):
    path = run
    (file,) = particle_files(path)
    whole = file.read_bytes()
    cut = random.Random(seed).randrange(len(whole) - 1)
    file.write_bytes(whole[:cut])
    before = list(read_particles(path)) if cut else []
    with ParticlesFile(path):
        pass
    left = file.read_bytes()
    assert whole.startswith(left)
    dropped = tmp_path / f"{file.name}.dropped-1"
    if dropped.exists():
        assert left + dropped.read_bytes() == whole[:cut]
        assert "dropped an incomplete last gzip member" in capsys.readouterr().err
    else:
        assert len(left) == cut
    if left:
        assert len(list(read_particles(path))) <= len(before)


def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path):
    file = tmp_path / "rows.particles.jsonl.gz"
    foreign = [
        b"my notes",
        b"\0" * 100,
        gzip.compress(b"my notes\n" * 1000),
        gzip.compress(b"my notes\n" * 1000)[:40],
        gzip.compress(b'{"a": 1}\n'),
        gzip.compress(b""),
        compress_member(b'{"method": "smc", "texts": []}\n'),
    ]
    for content in foreign:
        file.write_bytes(content)
        with pytest.raises(ResultsError, match="is not a file of particles"):
            ParticlesFile(tmp_path / "rows.jsonl")
        assert file.read_bytes() == content
        assert len(list(tmp_path.iterdir())) == 1


def test_damage_before_the_last_member_is_refused_and_left_as_it_is(run):
    (file,) = particle_files(run)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ResultsError, match="damaged"):
        ParticlesFile(run)
    with pytest.raises(ResultsError, match="is not a record"):
        list(read_particles(run))
    assert file.read_bytes() == content


def test_a_file_that_grows_when_decompressed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tsi.experiments.files.gzip_members.MAX_RECORD", 2**22)
    file = tmp_path / "rows.particles.jsonl.gz"
    file.write_bytes(compress_member(b'{"method": "' + b"a" * 2**25))
    assert file.stat().st_size < 2**16
    for use in (lambda path: list(read_particles(path)), ParticlesFile):
        with pytest.raises(ResultsError, match=r"rows\.particles\.jsonl\.gz"):
            use(tmp_path / "rows.jsonl")


WRONG = {
    "texts": [None, [], "abc", [1], ["a"]],
    "answers": [None, ["a", 3], [None]],
    "log_weights": [[0.0], ["NaN", 0.0], [None, 0.0], [True, 0.0], "ab"],
    "rewards": [[0.5, "1"], {}],
    "truncated": [[0, 1], None, [True]],
    "num_particles": [0, "2", 1.0, True],
    "problem": [None, 1.5, []],
    "ancestors": [[[0]], [[0, 2]], [[0, -1]], [[0, 0.5]], [["nan", 0]], 3],
    "step_texts": [[["a"]], ["a", "b"], 4],
    "step_rewards": [[[0.1]], "no"],
    "ess": [None, ["x"]],
    "selected": [4],
    "settings_id": ["0123", None, []],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field in WRONG for value in WRONG[field]]
)
def test_a_field_of_another_type_is_an_error_with_file_and_line(tmp_path, field, value):
    path = tmp_path / "rows.jsonl"
    plan = make_plan(["smc"], [2], 1)
    run_plan(plan, fake_world(2), path, progress=False, keep="all")
    (file,) = particle_files(path)
    lines = gzip.decompress(file.read_bytes()).splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {field: value}).encode()
    file.write_bytes(compress_member(b"\n".join(lines) + b"\n"))
    with pytest.raises(ResultsError, match=r"jsonl\.gz, line 3, is not a record"):
        list(read_particles(path))


def test_numbers_come_back_exactly(finished):
    world = fake_world(7)
    for kept in read_particles(finished):
        if kept.key.method != "smc":
            continue
        result = world.engine.result(
            sampler_of("smc", 5),
            "smc",
            kept.key.seed,
            kept.problem,
            kept.key.num_particles,
            None,
        )
        assert np.array_equal(kept.particles.log_weights, result.log_weights)
        assert np.array_equal(kept.particles.rewards, result.rewards)
        assert kept.log_evidence == result.log_evidence
        assert kept.particles.texts == result.texts
        assert np.array_equal(kept.steps.ancestors, result.steps.ancestors)


def test_several_processes_keep_shards_that_are_read_and_collected_together(tmp_path):
    paths = [tmp_path / name for name in ("rows.jsonl", "rows-1.jsonl")]
    plan = make_plan(["smc"], [2], 1)
    whole = fake_world(6)
    for index, path in enumerate(paths):
        world = whole._replace(problems=whole.problems[index::2])
        run_plan(plan, world, path, progress=False)
    assert len(particle_files(paths[0])) == 2
    before = particles_of(paths[0])
    assert {key.problem for key in before} == set(range(6))
    with ParticlesFile(paths[0]) as particles:
        particles.fold()
    assert [x.name for x in particle_files(paths[0])] == ["rows.particles.jsonl.gz"]
    assert as_text(particles_of(paths[0])) == as_text(before)


def test_corrupt_grades_are_restored_exactly(run):
    whole = run.read_bytes()
    rng = random.Random(0)
    lines = []
    for line in map(json.loads, whole.splitlines()):
        if "method" in line and rng.random() < 0.5:
            line |= {"correct": not line["correct"], "num_right": rng.randrange(9)}
            line |= {"selected": "x", "probability": 0.5, "unanswered": None}
        lines.append(json.dumps(line))
    run.write_text("\n".join(lines) + "\n")
    corrupt = run.read_bytes()
    regraded = regrade(run, fake_grading)
    assert run.read_bytes() == whole
    assert regraded.num_changed > 100
    (copy,) = regraded.copies
    assert copy.read_bytes() == corrupt
    assert regrade(run, fake_grading).num_changed == 0
    assert len(list(run.parent.glob("*.before-regrade-*"))) == 2


def test_another_grader_is_used_and_recorded(run):
    def grading_of(settings):
        def grade(pairs):
            return [Grade(True) for _ in pairs]

        return Grading(read_answer, grade, {"grader": "all:right"})

    before = read_rows(run)
    regraded = regrade(run, grading_of)
    rows = read_rows(run)
    answered = sum(row["selected"] is not None for row in rows.values())
    assert regraded.num_correct == answered
    for cell, row in rows.items():
        assert row["settings"] == before[cell]["settings"] | {"grader": "all:right"}
        assert row["correct"] == (row["selected"] is not None)
        assert row["num_right"] == row["num_answered"]
        assert row["flops"] == before[cell]["flops"]


def test_another_extractor_finds_other_answers(run):
    def grading_of(settings):
        def grade(pairs):
            return [Grade(answer == "last") for _, answer in pairs]

        return Grading(lambda text: "last", grade)

    regrade(run, grading_of)
    for row in read_rows(run).values():
        # Cut solutions have no answer, whatever their text says.
        assert (row["selected"] == "last") == row["correct"]
        assert row["num_answered"] == row["num_right"]
        if row["num_answered"]:
            assert row["probability"] == 1.0


@pytest.mark.parametrize(("method", "counts"), [("mcts", False), ("smc", True)])
def test_what_a_search_has_dismissed_is_no_solution(method, counts):
    """It has no weight; a particle of a filter without weight is a solution."""
    world = fake_world(1)
    batch = Batch(method, 4, 0, world.problems, [(method, 4)])
    (result,) = world.engine.run(
        sampler_of(method, 5), jax.random.key(0), world.problems, 4, extract=read_answer
    )
    log_weights = np.array([0.5, -np.inf, 0.5, 0.5], np.float32)
    answers = ["7", None, "7", None]
    dismissed = vary(
        result,
        particles={
            "texts": ["7", "None", "7", "7"],
            "log_weights": log_weights,
            "answers": answers,
            "truncated": np.zeros(4, bool),
        },
    )
    (problem,) = world.problems
    record = record_of(batch, problem, dismissed, read_answer, 5, "solutions")
    # The last is a prefix that had not ended: its text has an answer, and it had none.
    assert record["complete"] == [True, counts, True, False]


def test_rows_without_texts_are_refused_and_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    for method, keep in (("smc", "solutions"), ("rebase", "none")):
        plan = make_plan([method], [2], 1)
        run_plan(plan, fake_world(3), path, progress=False, keep=keep)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=r"3 of 6 rows of .* have no kept texts"):
        regrade(path, fake_grading)
    assert path.read_bytes() == before
    with pytest.raises(ResultsError, match="There is no results file"):
        regrade(tmp_path / "none.jsonl", fake_grading)
    with pytest.raises(ConfigurationError, match="object store"):
        regrade("memory://x/rows.jsonl", fake_grading)


def test_a_row_of_a_smaller_budget_added_later_is_regraded_too(tmp_path):
    path = tmp_path / "rows.jsonl"
    for budgets in ((4,), (1, 2), (8,)):
        plan = make_plan(["best_of_n"], budgets, 1)
        run_plan(plan, fake_world(3), path, progress=False)
    before = path.read_bytes()
    assert regrade(path, fake_grading).num_changed == 0
    assert path.read_bytes() == before
    assert Cell("best_of_n", 2, 0, 0) in read_rows(path)
