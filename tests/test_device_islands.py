"""A problem whose particles are islands, on one or on several groups of devices."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import test_engine
import test_reasoning
import tiny_language as tiny
from fake_world import fake_world

from tsi import samplers
from tsi.engine.engine import Engine
from tsi.engine.engine_run import EngineRun, collect
from tsi.engine.islands import island_id, island_size, stream_islands
from tsi.errors import ConfigurationError, ProblemError
from tsi.experiments.forecasts.pilot import measure_length
from tsi.experiments.plans.methods import budgets_of, sampler_of
from tsi.experiments.plans.plan import check_budgets, make_plan
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.rows.results import read_rows
from tsi.experiments.scaling.scale import run_plan
from tsi.models.partition import make_mesh
from tsi.problem import Problem
from tsi.results.ledger import SlotCosts, join_slots, ledger_of_first
from tsi.results.rounds import merge_rounds

KEY = jax.random.key(5)
SAMPLER = samplers.smc()


def on_islands(engine, problems, num_particles, num_islands, sampler=SAMPLER):
    """Results in the order of the problems."""
    stream = stream_islands(
        engine,
        sampler,
        KEY,
        problems,
        num_particles,
        num_islands,
        extract=test_engine.extract,
    )
    return collect(stream, problems, None)


def plain(result):
    """What does not depend on the devices, of JSON types."""
    return {
        "texts": list(result.texts),
        "ancestors": result.steps.ancestors.tolist(),
        "log_weights": np.round(result.log_weights, 4).tolist(),
        "tokens": result.ledger[1:3],
    }


@pytest.mark.long
@pytest.mark.parametrize("name", ["smc", "mcts"])
def test_islands_are_runs_of_their_own_that_are_merged(name):
    engine, sampler = test_engine.shared_engine(), getattr(samplers, name)()
    problems = test_engine.PROBLEMS[:2]
    found = on_islands(engine, problems, 8, 2, sampler)
    for problem, result in zip(problems, found, strict=True):
        islands = [
            engine.run(
                sampler,
                KEY,
                [problem._replace(id=island_id(problem.id, i))],
                4,
                extract=test_engine.extract,
            )[0]
            for i in range(2)
        ]
        merged = merge_rounds(islands)
        assert result.problem_id == problem.id
        assert len(result.texts) == result.ledger.rollouts == 8
        assert result.texts == islands[0].texts + islands[1].texts
        assert islands[0].texts != islands[1].texts
        test_engine.same(result, merged)
        np.testing.assert_array_equal(
            result.slots.generated_tokens,
            np.concatenate([x.slots.generated_tokens for x in islands]),
        )
        assert result.slots.generated_tokens.sum() == result.ledger.generated_tokens


@pytest.mark.long
def test_evidence_and_posterior_of_islands_equal_enumeration():
    target, params = test_reasoning.enumerable(0.0)
    everything = test_reasoning.enumerate_texts(
        target, params, test_reasoning.VOCABULARY
    )
    masses = {text: np.exp(p + odds) for text, p, odds, _ in everything}
    evidence = sum(masses.values())
    likely = max(masses, key=lambda text: masses[text])
    models = params.policy, params.reward_model
    engine = Engine(target, *models, encode=tiny.encode, decode=tiny.decode)
    problems = [Problem(i, "ab", "") for i in range(600)]
    results = on_islands(engine, problems, 32, 2)
    weights = np.exp([r.log_evidence for r in results])[:, None] * np.exp(
        np.asarray([r.log_weights for r in results], np.float64)
    )
    estimates = weights.mean(axis=1)
    error = estimates.std() / np.sqrt(len(estimates))
    assert abs(estimates.mean() - evidence) < 4 * error
    assert error < 0.02 * evidence
    text = tiny.decode(list(likely))
    hits = np.asarray([[x == text for x in result.texts] for result in results])
    shares = (weights * hits).mean(axis=1)
    # A text that was cut and one that has ended may be equal.
    same_text = [x for x in masses if tiny.decode(list(x)) == text]
    expected = sum(masses[x] for x in same_text)
    assert abs(shares.mean() - expected) < 4 * shares.std() / np.sqrt(len(shares))


ON_FOUR_DEVICES = """
import json, sys
sys.path.insert(0, {tests!r})
import test_device_islands as own
print(json.dumps(own.on_four_devices()))
"""


def on_four_devices():
    """What one problem gives with four islands, and on how many groups it ran."""
    numbers, init = [], EngineRun.__init__

    @functools.wraps(init)
    def watch(self, *arguments, **options):
        init(self, *arguments, **options)
        numbers.append(len(self._lanes))

    EngineRun.__init__ = watch
    engine = test_engine.engine(mesh=make_mesh(4, 1))
    (result,) = on_islands(engine, test_engine.PROBLEMS[:1], 16, 4)
    return {"groups": numbers, **plain(result)}


@pytest.mark.long
def test_the_islands_of_one_problem_are_on_different_groups_of_devices():
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            ON_FOUR_DEVICES.format(tests=str(Path(__file__).parent)),
        ],
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found.pop("groups") == [4]
    (result,) = on_islands(test_engine.shared_engine(), test_engine.PROBLEMS[:1], 16, 4)
    expected = json.loads(json.dumps(plain(result)))
    np.testing.assert_allclose(
        found.pop("log_weights"), expected.pop("log_weights"), atol=3e-4
    )
    assert found == expected


def test_more_particles_than_fit_together_fit_as_islands(monkeypatch):
    engine = test_engine.shared_engine()
    monkeypatch.setattr(Engine, "free_bytes", lambda self: 400_000)
    with pytest.raises(ConfigurationError, match=r"divide the particles among islands"):
        engine.check_fits(SAMPLER, 64)
    engine.check_fits(SAMPLER, island_size(64, 16))


@pytest.mark.parametrize(("num_particles", "islands"), [(10, 4), (2, 4), (4, 0)])
def test_islands_of_unequal_size_are_refused(num_particles, islands):
    with pytest.raises(ConfigurationError, match="multiples of the number of islands"):
        island_size(num_particles, islands)


class FailingEngine:
    """A fake engine for which some problems fail after the others have ended."""

    def __init__(self, engine, failing):
        self.engine, self.failing = engine, failing

    def stream(self, sampler, key, problems, num_particles, **options):
        for result in self.engine.stream(
            sampler, key, problems, num_particles, **options
        ):
            if result.problem_id not in self.failing:
                yield result
        errors = {id: ValueError(str(id)) for id in self.failing}
        raise ProblemError(errors, {self.failing[0]: 3}, dict.fromkeys(errors, "trace"))


def test_a_problem_fails_with_the_first_of_its_islands_that_failed():
    world = fake_world(3)
    failing = [island_id(1, 1), island_id(1, 0)]
    assert island_id("1", 0) != island_id(1, 0)
    engine = FailingEngine(world.engine, failing)
    sampler, ids = sampler_of("smc", 5), []
    with pytest.raises(ProblemError) as raised:
        ids += [
            result.problem_id
            for result in stream_islands(
                engine, sampler, KEY, world.problems, 4, 2, extract=str
            )
        ]
    assert list(raised.value.failures) == [1]
    assert str(raised.value.failures[1]) == "1/island 1"
    assert raised.value.steps == {1: 3}
    assert raised.value.tracebacks == {1: "trace"}


def test_a_plan_divides_particles_and_says_so_in_its_rows(tmp_path):
    plan, path = make_plan(["smc", "greedy"], [2, 4], 1), tmp_path / "rows.jsonl"
    world = fake_world(3).with_islands(2)
    rows = run_plan(plan, world, path, progress=False)
    sizes = [(name, n, len(ids)) for name, _, n, ids in world.engine.calls]
    # Two islands of each problem run at once, and greedy decoding is one rollout.
    assert sorted(sizes) == [("greedy", 1, 3), ("smc", 1, 6), ("smc", 2, 6)]
    assert {row["rollouts"] for row in rows.values()} == {1, 2, 4}
    assert '"islands": 2' in path.read_text()
    assert read_rows(path).keys() == rows.keys()
    uneven, other = make_plan(["smc"], [6], 1), tmp_path / "other.jsonl"
    with pytest.raises(ConfigurationError, match="N = 6 cannot be divided among 4"):
        run_plan(uneven, fake_world(3).with_islands(4), other, progress=False)
    # Budgets without a particle for each island are left out.
    assert budgets_of("smc", (1, 2, 4, 8), 4) == [4, 8]
    assert budgets_of("greedy", (1, 2), 4) == [1]
    (first, *_) = run_method(world, "smc", jax.random.key(0), world.problems, 4)
    assert len(first.texts) == 4


def test_a_sampler_that_cannot_use_the_particles_of_an_island_is_named():
    plan = make_plan(["dvts"], [12], 1)
    check_budgets(plan, 5)
    with pytest.raises(ConfigurationError, match="DVTS cannot run at N = 12"):
        check_budgets(plan, 5, num_islands=2)


def test_the_first_rollouts_of_islands_cost_the_prompts_that_they_read():
    numbers = np.arange(4)
    costs = SlotCosts(numbers, numbers, 1.0 * numbers, 2.0 * numbers, 10, 100.0, 7.0)
    joined = join_slots([costs, costs])
    for count, prompts in ((1, 1), (4, 1), (5, 2), (8, 2)):
        ledger = ledger_of_first(joined, count, 0.0)
        slots = np.concatenate([numbers, numbers])[:count].sum()
        assert ledger.reward_tokens == 10 * prompts + slots
        assert ledger.flops == 107.0 * prompts + 3.0 * slots
    assert join_slots([costs, None]) is None


def test_a_pilot_is_not_divided():
    world = fake_world(3).with_islands(4)
    _, pilot = measure_length(world, 2)
    assert world.engine.calls[0][2:] == (2, [0, 2])
    assert pilot
