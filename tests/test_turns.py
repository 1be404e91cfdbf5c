"""Two models that take turns on the device give the samples of two that share it."""

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
from tsi.engine.engine import Engine
from tsi.engine.model_weights import WeightsInTurns, place_on, weights_on_host
from tsi.engine.sizing import memory
from tsi.engine.step_reader import FailedStep, StepReader
from tsi.engine.text_readings import TextReadings
from tsi.errors import ConfigurationError, ProblemError
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


def bytes_on_device(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))


@pytest.fixture
def turns(monkeypatch):
    """The weights of all lanes, and how many bytes of weights each has placed."""
    found = []
    init = WeightsInTurns.__init__

    def watch(self, *arguments):
        init(self, *arguments)
        found.append(self)

    monkeypatch.setattr(WeightsInTurns, "__init__", watch)
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_those_of_two_models_that_share_the_device(name, turns):
    runner = engine()
    together = run(runner, SAMPLERS[name])
    assert runner.report.weight_moves == 0
    apart = run(engine(takes_turns=True), SAMPLERS[name])
    assert len({text for result in apart for text in result.texts}) > 2
    assert turns[0].num_moves > 2
    for left, right in zip(together, apart, strict=True):
        test_engine.same(left, right)
        np.testing.assert_array_equal(
            left.slots.reward_tokens, right.slots.reward_tokens
        )


@pytest.mark.long
def test_weights_move_once_per_step_and_only_one_model_is_there(monkeypatch, turns):
    """All rows of all problems end their steps before the reward model comes."""
    use, sizes = WeightsInTurns._use, []

    def watch(self, name, model):
        before = self._resident
        placed = use(self, name, model)
        if before[0] not in ("", name):
            leaves = jax.tree.leaves(before[1])
            assert leaves
            assert all(leaf.is_deleted() for leaf in leaves)
        sizes.append(bytes_on_device(self._resident[1]))
        return placed

    monkeypatch.setattr(WeightsInTurns, "_use", watch)
    # With few slots rows wait for each other, and still the weights do not move.
    runner = engine(takes_turns=True, max_rows=4)
    runner.max_in_flight = 100
    results = run(runner, SAMPLERS["filter"])
    (weights,) = turns
    assert runner.report.weight_moves == weights.num_moves
    policy, reward = weights._params.policy, weights._reward_model
    largest = memory.bytes_in_turns((policy, reward))
    assert max(sizes) == largest
    assert largest < sum(memory.bytes_in_turns(model) for model in (policy, reward))
    steps = max(len(texts) for r in results for texts in r.particles.step_texts)
    # Both models read the prompts, and come once per step of the longest solution.
    assert steps > 2
    assert weights.num_moves == 2 * (1 + steps)
    # The user's own weights are on the host, and still there.
    assert not bytes_on_device((policy, reward))


@pytest.mark.long
def test_a_problem_that_fails_between_two_turns_is_given_up_alone(monkeypatch):
    whole = run(engine(), SAMPLERS["filter"])
    step = TextReadings._continue

    def fail(self, i, batch, solutions):
        if batch.problems[i] == 1 and batch.depths[i] == 1:
            raise ZeroDivisionError("not this one")
        return step(self, i, batch, solutions)

    monkeypatch.setattr(TextReadings, "_continue", fail)
    failed = engines.PROBLEMS[1].id
    with pytest.raises(ProblemError, match="ZeroDivisionError") as caught:
        run(engine(takes_turns=True), SAMPLERS["filter"])
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
    runner = engine(takes_turns=True, max_rows=4)
    runner.max_in_flight = 16
    with pytest.raises(ProblemError, match="no number") as caught:
        runner.run(sampler, KEY, problems, size, **settings)
    assert list(caught.value.failures) == [1]
    kept = [result for result in whole if result.problem_id != 1]
    for left, right in zip(kept, caught.value.results, strict=True):
        test_engine.same(left, right)


@pytest.mark.parametrize("reward", [NoReward(), tiny.target().reward])
def test_a_reward_without_programs_of_its_own_takes_no_turns(reward):
    policy, model = tiny.models()
    with pytest.raises(ConfigurationError, match=r"turns .* Leave out .*\."):
        Engine(
            tiny.target(reward=reward),
            policy,
            model,
            encode=tiny.encode,
            decode=tiny.decode,
            takes_turns=True,
        )


def test_memory_is_planned_for_the_larger_model(monkeypatch):
    models = weights_on_host((tiny.models()[0], kinds.model_of("rlhflow")))
    sizes = [sum(x.nbytes for x in jax.tree.leaves(model)) for model in models]
    monkeypatch.setattr(memory, "free_bytes", lambda _: 10**9)
    monkeypatch.setattr(memory, "_has_own_memory", lambda _: True)
    free = memory.free_beside_weights(models, takes_turns=True)
    assert free == 10**9 - max(sizes)
    # On a CPU the device's memory is the host's, where both are already.
    monkeypatch.setattr(memory, "_has_own_memory", lambda _: False)
    assert memory.free_beside_weights(models, takes_turns=True) == 10**9


def test_a_model_comes_back_as_it_was():
    policy, reward = tiny.models()[0], kinds.model_of("rlhflow")
    unread = None
    params = ReasoningParams(
        weights_on_host(policy), weights_on_host(reward), unread, np.float32(1)
    )
    weights = WeightsInTurns(params, place_on(None))
    for _ in range(3):
        for name, model in (("policy", policy), ("reward", reward)):
            placed = weights.params.policy if name == "policy" else weights.reward_model
            for left, right in zip(
                jax.tree.leaves(placed), jax.tree.leaves(model), strict=True
            ):
                np.testing.assert_array_equal(left, right)
                assert left.dtype == right.dtype
    assert weights.num_moves == 6
    weights.release()
    assert weights.params.policy is weights.params.policy
    assert weights.num_moves == 7


DEVICES = """
import json, jax
import test_turns as turns
from tsi.engine.model_weights import WeightsInTurns
from tsi.models.partition import make_mesh, memory

found, use = [], WeightsInTurns._use

def watch(self, name, model):
    placed = use(self, name, model)
    shares = memory(placed).by_device
    assert len(shares) == parts, shares
    assert max(shares.values()) < memory(placed).total or parts == 1
    return placed

WeightsInTurns._use = watch
for data, parts in ((1, 1), (2, 1), (2, 2)):
    mesh = make_mesh(data, parts) if data * parts > 1 else None
    engine = turns.engine(takes_turns=True, mesh=mesh)
    results = turns.run(engine, turns.SAMPLERS["filter"])
    found.append([[r.texts, r.rewards.tolist()] for r in results])
print(json.dumps(found))
"""


@pytest.mark.long
def test_turns_are_taken_on_every_group_of_devices():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, *others = json.loads(done.stdout.splitlines()[-1])
    for other in others:
        assert [texts for texts, _ in one] == [texts for texts, _ in other]
        for (_, left), (_, right) in zip(one, other, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)
