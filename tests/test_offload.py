"""Two models of which one at a time is on the device give the samples of both there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import reading_rewards as kinds
import test_engine
import test_reward_engine as engines
import tiny_language as tiny

from tsi import samplers
from tsi.engine import model_weights as weights_module
from tsi.engine.engine import Engine
from tsi.engine.model_weights import OffloadedWeights, fetch_weights, place_on
from tsi.engine.sizing import memory, planning
from tsi.engine.step_reader import FailedStep, StepReader
from tsi.engine.text_readings import TextReadings
from tsi.engine.writers import Writers
from tsi.errors import ConfigurationError, MemoryWarning, ProblemError
from tsi.experiments.forecasts import dry_run
from tsi.problem import Problem
from tsi.reasoning.particles import ReasoningParams
from tsi.rewards.reward import NoReward

KEY = jax.random.key(3)
SAMPLERS = {
    "filter": samplers.particle_filter(),
    "tree": samplers.mcts(),
    "repeats": samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
}


def engine(name="rlhflow", **changes):
    policy, _ = tiny.models(sharpness=1.0)
    target = tiny.target(
        reward=kinds.reward_of(name, width=32),
        max_step_tokens=kinds.STEP_TOKENS,
        max_tokens=kinds.MAX_TOKENS,
        max_steps=kinds.MAX_STEPS,
        log_truncation=0.0,
    )
    settings = {"encode": tiny.encode, "decode": tiny.decode, "max_rows": 16}
    return Engine(target, policy, kinds.model_of(name), **settings | changes)


def run(runner, sampler, **options):
    return runner.run(
        sampler, KEY, engines.PROBLEMS, 4, extract=test_engine.extract, **options
    )


class Device:
    """The models that were copied to the device.

    Attributes:
        models: all of them, deleted ones included.
        peak: the largest number of bytes of models that were there together.
    """

    def __init__(self):
        self.models, self.peak = [], 0

    def record(self, model):
        if hasattr(model, "config"):
            self.models.append(model)
            self.peak = max(self.peak, self.num_bytes())

    def num_bytes(self):
        leaves = jax.tree.leaves(self.models)
        return sum(leaf.nbytes for leaf in leaves if not leaf.is_deleted())


@pytest.fixture
def device(monkeypatch):
    device, real = Device(), weights_module.place_on

    def place_on(part):
        def place(model):
            copied = real(part)(model)
            device.record(copied)
            return copied

        return place

    monkeypatch.setattr(weights_module, "place_on", place_on)
    return device


def sizes_of(runner):
    return [
        sum(x.nbytes for x in jax.tree.leaves(model))
        for model in (runner.policy, runner.reward_model)
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_those_of_two_models_that_share_the_device(name, device):
    plain, runner = engine(), engine(offload_weights=True)
    expected, results = (run(one, SAMPLERS[name]) for one in (plain, runner))
    assert plain.report.weight_transfers == 0
    assert runner.report.weight_transfers == len(device.models) > 2
    assert device.peak == max(sizes_of(runner))
    assert len({text for result in results for text in result.texts}) > 2
    for left, right in zip(expected, results, strict=True):
        test_engine.same(left, right)
        np.testing.assert_array_equal(
            left.slots.reward_tokens, right.slots.reward_tokens
        )


@pytest.mark.long
def test_each_model_is_copied_once_per_step(device):
    """With few slots rows wait for each other, and still the models stay."""
    runner = engine(offload_weights=True, max_rows=4)
    runner.max_in_flight = 100
    results = run(runner, SAMPLERS["filter"])
    steps = max(len(texts) for r in results for texts in r.particles.step_texts)
    assert steps > 2
    # Both models read the prompts, and come once per step of the longest solution.
    assert len(device.models) == 2 * (1 + steps)
    assert device.peak == max(sizes_of(runner)) < sum(sizes_of(runner))
    # The engine's own weights are on the host, and still there.
    leaves = jax.tree.leaves((runner.policy, runner.reward_model))
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)


@pytest.mark.long
def test_no_model_stays_on_the_device_after_a_run(device, monkeypatch):
    runner, sampler = engine(offload_weights=True), SAMPLERS["filter"]
    settings = {"extract": test_engine.extract}
    run(runner, sampler)
    assert device.models
    assert device.num_bytes() == 0
    first = len(device.models)
    stream = runner.stream(sampler, KEY, engines.PROBLEMS, 4, **settings)
    next(stream)
    assert device.num_bytes() > 0
    stream.close()
    assert len(device.models) > first
    assert device.num_bytes() == 0

    def fail(self, *_):
        raise ValueError("an error of the engine")

    monkeypatch.setattr(StepReader, "collect", fail)
    with pytest.raises(ValueError, match="of the engine"):
        run(runner, sampler)
    assert device.num_bytes() == 0


@pytest.mark.long
def test_a_run_without_memory_for_its_rows_continues_with_fewer(device, monkeypatch):
    expected = run(engine(), SAMPLERS["filter"])
    write, calls = Writers.write, []

    def run_out(self, min_ended):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no room")
        return write(self, min_ended)

    monkeypatch.setattr(Writers, "write", run_out)
    runner = engine(offload_weights=True)
    with pytest.warns(MemoryWarning, match="no room"):
        results = run(runner, SAMPLERS["filter"])
    assert runner.report.weight_transfers == len(device.models)
    assert device.peak == max(sizes_of(runner))
    for left, right in zip(expected, results, strict=True):
        test_engine.same(left, right)


def run_python(code, devices=1):
    """What a program prints that runs in its own process, on some CPU devices."""
    flags = (
        f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CACHES = """
import gc, weakref, jax, test_engine
from tsi import samplers
from tsi.engine.lane import Lane

stores, init = [], Lane.__init__

def watch(self, *arguments):
    init(self, *arguments)
    stores.append(weakref.ref(self.store))

Lane.__init__ = watch
engine = test_engine.engine()
gc.disable()
key, problems = jax.random.key(0), test_engine.PROBLEMS
engine.run(samplers.particle_filter(), key, problems, 2, extract=str)
assert engine.report.useful > 0
assert [store() for store in stores] == [None]
"""


@pytest.mark.long
def test_the_caches_of_a_run_are_freed_when_it_ends():
    """Without a garbage collection, so that the next run finds the memory.

    In its own process, because checks of types keep arguments alive here.
    """
    run_python(CACHES)


@pytest.mark.long
def test_a_problem_whose_reward_fails_is_given_up_alone(monkeypatch):
    whole = run(engine(), SAMPLERS["filter"])
    step = TextReadings._continue

    def fail(self, i, batch, solutions):
        if batch.problems[i] == 1 and batch.depths[i] == 1:
            raise ZeroDivisionError("not this one")
        return step(self, i, batch, solutions)

    monkeypatch.setattr(TextReadings, "_continue", fail)
    failed = engines.PROBLEMS[1].id
    with pytest.raises(ProblemError, match="ZeroDivisionError") as caught:
        run(engine(offload_weights=True), SAMPLERS["filter"])
    assert list(caught.value.failures) == [failed]
    kept = [result for result in whole if result.problem_id != failed]
    for left, right in zip(kept, caught.value.results, strict=True):
        test_engine.same(left, right)


@pytest.mark.long
def test_rows_that_wait_while_their_problem_fails_harm_no_other_problem(monkeypatch):
    """Its place is taken by another problem before the reward model comes."""
    problems = [Problem(i, tiny.ALPHABET[i : i + 4], "") for i in range(12)]
    settings = {"extract": test_engine.extract}
    sampler, size = SAMPLERS["filter"], 4
    whole = engine().run(sampler, KEY, problems, size, **settings)
    score = StepReader._score

    def fail(self, rows, replies):
        failed = score(self, rows, replies)
        places = self.population.places_of(rows)
        for place in np.unique(places[self.population.index[places] == 1]):
            failed.append(FailedStep(int(place), 1, ArithmeticError("no number")))
        return failed

    monkeypatch.setattr(StepReader, "_score", fail)
    runner = engine(offload_weights=True, max_rows=4)
    runner.max_in_flight = 16
    with pytest.raises(ProblemError, match="no number") as caught:
        runner.run(sampler, KEY, problems, size, **settings)
    assert list(caught.value.failures) == [1]
    kept = [result for result in whole if result.problem_id != 1]
    for left, right in zip(kept, caught.value.results, strict=True):
        test_engine.same(left, right)


@pytest.mark.parametrize("reward", [NoReward(), tiny.target().reward])
def test_weights_are_not_offloaded_for_a_reward_without_programs_of_its_own(reward):
    policy, model = tiny.models()
    with pytest.raises(ConfigurationError, match=r"offloaded .* Leave out .*\."):
        Engine(
            tiny.target(reward=reward),
            policy,
            model,
            encode=tiny.encode,
            decode=tiny.decode,
            offload_weights=True,
        )


def test_memory_is_planned_for_the_larger_model(monkeypatch):
    models = fetch_weights((tiny.models()[0], kinds.model_of("rlhflow")))
    sizes = [sum(x.nbytes for x in jax.tree.leaves(model)) for model in models]
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**9)
    monkeypatch.setattr(memory, "_has_own_memory", lambda _: True)
    free = memory.free_beside_weights(models, offload_weights=True)
    assert free == 10**9 - max(sizes)
    # On a CPU the device's memory is the host's, where both are already.
    monkeypatch.setattr(memory, "_has_own_memory", lambda _: False)
    assert memory.free_beside_weights(models, offload_weights=True) == 10**9


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_rows_are_planned_beside_the_larger_model(monkeypatch, platform):
    """The fake device says what it is, and has little memory."""
    runner = engine()
    models = runner.policy, runner.reward_model
    monkeypatch.setattr(planning, "free_bytes", lambda _: 10**7)
    fake = type("Fake", (), {"platform": platform})()
    monkeypatch.setattr(planning.jax, "local_devices", lambda: [fake])
    seen = []

    def limits(slot, prefix, free, *, on_cpu):
        seen.append(free)
        return planning.Limits(1, 1, 2)

    monkeypatch.setattr(planning, "limits_of", limits)
    planning.device_limits(runner.target, *models, 8, None, offload_weights=True)
    expected = 0 if platform == "cpu" else max(sizes_of(runner))
    assert seen == [10**7 - expected]


def test_a_dry_run_counts_weights_on_the_host():
    runner = engine(offload_weights=True)
    policy, reward = (f"{size / 1e6:,.1f} MB" for size in sizes_of(runner))
    lines = dry_run._memory(runner, runner.target, 8)
    assert f"weights  {policy} of the policy, {reward} of the reward" in lines
    assert "beside the larger of the two models" in "\n".join(lines)


def test_a_model_comes_back_as_it_was():
    policy, reward = tiny.models()[0], kinds.model_of("rlhflow")
    unread = None
    params = ReasoningParams(
        fetch_weights(policy), fetch_weights(reward), unread, np.float32(1)
    )
    weights = OffloadedWeights(params, place_on(None))
    for _ in range(3):
        for name, model in (("policy", policy), ("reward", reward)):
            placed = weights.params.policy if name == "policy" else weights.reward_model
            for left, right in zip(
                jax.tree.leaves(placed), jax.tree.leaves(model), strict=True
            ):
                np.testing.assert_array_equal(left, right)
                assert left.dtype == right.dtype
    assert weights.num_transfers == 6
    weights.release()
    assert weights.params.policy is weights.params.policy
    assert weights.num_transfers == 7


DEVICES = """
import json, jax
import test_offload as turns
from tsi.engine.model_weights import OffloadedWeights
from tsi.models.partition import make_mesh, memory

found, use = [], OffloadedWeights._use

def watch(self, name, model):
    placed = use(self, name, model)
    shares = memory(placed).by_device
    assert len(shares) == parts, shares
    assert max(shares.values()) < memory(placed).total or parts == 1
    return placed

OffloadedWeights._use = watch
for data, parts in ((1, 1), (2, 1), (2, 2)):
    mesh = make_mesh(data, parts) if data * parts > 1 else None
    engine = turns.engine(offload_weights=True, mesh=mesh)
    results = turns.run(engine, turns.SAMPLERS["filter"])
    found.append([[r.texts, r.rewards.tolist()] for r in results])
print(json.dumps(found))
"""


@pytest.mark.long
def test_weights_are_offloaded_on_every_group_of_devices():
    one, *others = json.loads(run_python(DEVICES, 4).splitlines()[-1])
    for other in others:
        assert [texts for texts, _ in one] == [texts for texts, _ in other]
        for (_, left), (_, right) in zip(one, other, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)
