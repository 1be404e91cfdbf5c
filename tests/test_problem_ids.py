"""Ids of problems: integers and strings, each with a stream of its own."""

import json

import jax
import numpy as np
import pytest
import tiny_language as tiny
from fake_world import fake_world
from test_engine import SAMPLER, extract, shared_engine

from tsi import problem_ids
from tsi.engine.adaptive import Rounds, run_rounds
from tsi.errors import ConfigurationError
from tsi.experiments.plans.methods import sampler_of
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.reports.curves import curves_of
from tsi.experiments.reports.to_arviz import to_datatree
from tsi.experiments.reports.write_report import write_report
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.problem import Problem
from tsi.problem_ids import check_ids, hash_words, id_words, problem_key, problem_keys

KEY = jax.random.key(3)
MIXED = (7, "7", "train-00041", 0, 2**32 - 1, "", "é", "0")


def problems_of(ids):
    return [Problem(id, "abc", "") for id in ids]


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_integers_keep_the_stream_of_fold_in():
    ids = [0, 5, 2**31, 2**32 - 1, np.int64(9)]
    keys = data(problem_keys(KEY, id_words(ids)))
    for id, found in zip(ids, keys, strict=True):
        np.testing.assert_array_equal(found, data(jax.random.fold_in(KEY, int(id))))


def test_strings_fold_in_two_words_of_their_sha256_under_a_tag():
    # printf train-00041 | sha256sum
    assert hash_words("train-00041") == (0xB449FFD9, 0x5FF520D0)
    expected = jax.random.fold_in(KEY, problem_ids.STRING_TAG)
    for word in hash_words("train-00041"):
        expected = jax.random.fold_in(expected, word)
    found = data(problem_key(KEY, "train-00041"))
    np.testing.assert_array_equal(found, data(expected))


def test_no_two_ids_have_one_stream():
    ids = [*MIXED, *(f"p{n}" for n in range(500)), *range(1, 500), *"123456"]
    keys = data(problem_keys(KEY, id_words(dict.fromkeys(ids))))
    assert len({tuple(key) for key in keys.tolist()}) == len(keys) == len(set(ids))


@pytest.mark.parametrize(
    "id", [-1, 2**32, 10**40, True, 1.0, None, "\ud800", b"7", np.int64(-5)]
)
def test_what_is_no_id_is_refused_in_a_sentence(id):
    for problems in ([Problem(id, "a", "")], problems_of([3, id])):
        with pytest.raises(ConfigurationError, match=r"The id .+ Give"):
            check_ids(problems)
    with pytest.raises(ConfigurationError, match="The id"):
        problem_key(KEY, id)


def test_ids_given_twice_are_named_with_their_places():
    check_ids(problems_of(MIXED))
    shared = problems_of([3, "a", 3, "b", "a", np.int32(3)])
    with pytest.raises(ConfigurationError, match=r"3 at 0, 2, 5; 'a' at 1, 4\. Give"):
        check_ids(shared)
    many = problems_of([*range(9), *range(9)])
    with pytest.raises(ConfigurationError, match="4 at 4, 13; and 4 more"):
        check_ids(many)
    # Nor may one problem be asked twice.
    with pytest.raises(ConfigurationError, match="3 at 0, 1"):
        check_ids([shared[0], shared[0]])


def test_two_strings_of_one_hash_are_refused(monkeypatch):
    monkeypatch.setattr(problem_ids, "hash_words", lambda id: (len(id), 0))
    check_ids(problems_of(["a", "bc", 1]))
    with pytest.raises(ConfigurationError, match="'bc' and 'de' have the same hash"):
        check_ids(problems_of(["a", "bc", "de"]))


@pytest.mark.long
def test_the_engine_runs_strings_and_refuses_ids_given_twice():
    e, sampler = shared_engine(8), SAMPLER
    problems = [Problem(id, tiny.ALPHABET[:4], "") for id in (7, "7", "x")]
    key, settings = jax.random.key(7), {"extract": extract, "temperature": 30.0}
    # Two problems at once, and then the third.
    results = e.run(sampler, key, problems, 4, **settings)
    assert [result.problem_id for result in results] == [7, "7", "x"]
    assert len({tuple(result.texts) for result in results}) == 3
    turned = e.run(sampler, key, problems[::-1], 4, **settings)[::-1]
    assert [r.texts for r in turned] == [r.texts for r in results]
    for run in (e.check, lambda p: e.run(sampler, KEY, p, 4, **settings)):
        with pytest.raises(ConfigurationError, match="'x' at 2, 3"):
            run([*problems, problems[2]])
        with pytest.raises(ConfigurationError, match="4294967296 is neither"):
            run([problems[0]._replace(id=2**32)])


def named_world(ids):
    world = fake_world(len(ids))
    problems = [p._replace(id=i) for p, i in zip(world.problems, ids, strict=True)]
    return world._replace(problems=problems)


def test_rows_resume_and_reports_know_strings_and_numbers(tmp_path):
    plan, path = (
        make_plan(["smc", "beam_search"], [2, 4], 2),
        tmp_path / "rows.jsonl",
    )
    rows = run_plan(plan, named_world(MIXED), path, progress=False)
    assert {cell.problem for cell in rows} == set(MIXED)
    assert set(read_rows(path)) == set(rows)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    world = named_world(MIXED)
    resumed = run_plan(plan, world, path, progress=False)
    asked = {id for *_, ids in world.engine.calls for id in ids}
    assert asked <= set(MIXED)
    assert set(resumed) == set(rows)
    for cell, row in rows.items():
        other = resumed[cell]
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    assert curves_of(rows)["smc"][4].correct.shape == (len(MIXED), 2)
    assert "SMC" in write_report(plan, world, rows, tmp_path)
    # Numbers of numpy become those of JSON.
    numbers = named_world([np.int64(4), np.int64(2)])
    run_plan(plan, numbers, tmp_path / "numbers.jsonl", progress=False)
    lines = (tmp_path / "numbers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["problem"] for row in rows if "method" in row} == {2, 4}


def test_ids_given_twice_are_refused_before_any_work(tmp_path):
    world = named_world(["a", "b", "a"])
    with pytest.raises(ConfigurationError, match="'a' at 0, 2"):
        run_plan(
            make_plan(["smc"], [2], 1),
            world,
            tmp_path / "rows.jsonl",
            progress=False,
        )
    assert not (tmp_path / "rows.jsonl").exists()
    sampler, rounds = sampler_of("smc", 5), Rounds(2, 2, lambda done: False)
    with pytest.raises(ConfigurationError, match="'a' at 0, 2"):
        run_rounds(world.engine, sampler, KEY, world.problems, rounds, extract=str)
    assert world.engine.calls == []


def test_rounds_ask_each_problem_that_goes_on_once():
    def stop(done):
        return done[0].problem_id in ("a", 5)

    class Strict:
        """Refuses, as an engine does, what shares an id."""

        def run(self, sampler, key, problems, num_particles, **settings):
            check_ids(problems)
            sizes.append(len(problems))
            return world.engine.run(sampler, key, problems, num_particles, **settings)

    world, sizes = named_world(["a", "b", 3, 4, 5]), []
    sampler, rounds = sampler_of("self_consistency", 5), Rounds(2, 3, stop)
    results = run_rounds(Strict(), sampler, KEY, world.problems, rounds, extract=str)
    assert [len(result.answers) for result in results] == [2, 6, 6, 6, 2]
    assert sizes == [5, 3, 3]


@pytest.mark.parametrize("ids", [(4, 2), ("four", "2"), (7, "7")])
def test_arviz_knows_problems_by_their_ids(ids):
    pytest.importorskip("arviz_base")
    world = named_world(ids)
    sampler = sampler_of("smc", 5)
    results = [
        world.engine.result(sampler, "smc", seed, problem, 4, None)
        for seed in range(2)
        for problem in world.problems
    ]
    stats = to_datatree(results)["sample_stats"].dataset
    for place, id in enumerate(ids):
        found = stats.log_evidence.sel(problem=id).values.tolist()
        expected = [results[place + 2 * seed].log_evidence for seed in range(2)]
        assert found == expected
