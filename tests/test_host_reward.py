"""Rewards on the host: the numbers of a callback without one, failures by problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny

from tsi import samplers
from tsi.decoding.boundary import step_boundary
from tsi.engine.engine import Engine
from tsi.engine.lane import Lane
from tsi.engine.sizing import sizes as sizes_module
from tsi.engine.step_reader import StepReader
from tsi.errors import ProblemError, RewardError
from tsi.problem import Problem
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore
from tsi.results.result import Result
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.host_reward import Prefix, check_scores, score_each
from tsi.rewards.text_reward import TextReward
from tsi.rewards.verifier import Verifier
from tsi.run import run

KEY = jax.random.key(5)
WORDS = ("hello", "bad", "scale", "fin", "ode")
PROBLEMS = [Problem(i, word, "") for i, word in enumerate(WORDS)]
SAMPLERS = {
    "filter": samplers.particle_filter(),
    "repeats": samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
}


def count(texts):
    """Log-odds of texts: the more different letters, the better."""
    return [0.3 * len(set(text)) - 0.1 * len(text) for text in texts]


def check(question, text, ended):
    return 0.2 * len(set(text) & set(question)) + (1.0 if ended else -0.5)


TEXT = TextReward(count, tiny.decode)


def engine(reward) -> Engine:
    policy, _ = tiny.models()
    target = tiny.target(reward=reward, log_truncation=-1.0)
    return Engine(target, policy, None, encode=tiny.encode, decode=tiny.decode)


def results(reward, sampler, problems=PROBLEMS) -> list[Result]:
    found = engine(reward).run(sampler, KEY, problems, 8, extract=test_engine.extract)
    assert all(len(set(result.texts)) > 1 for result in found)
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    "reward", [TEXT, Verifier(check, tiny.decode), Aggregated(TEXT, "mean", 8)]
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_engine_gets_the_numbers_of_a_callback_without_one(
    monkeypatch, reward, name
):
    problem, alone = PROBLEMS[0], None
    policy, _ = tiny.models()
    target = tiny.target(reward=reward, log_truncation=-1.0)
    if name == "filter":
        asked = reward.prepare([problem.prompt])
        prompts = tiny.prompts(problem.prompt)._replace(questions=asked)
        params = ReasoningParams(policy, None, prompts, jnp.float32(1.0))
        once = jax.jit(lambda key: run(SAMPLERS[name], target, key, 8, params))
        alone = once(jax.random.fold_in(KEY, problem.id))
    called = []
    monkeypatch.setattr(jax, "pure_callback", lambda *a, **k: called.append(a))
    together = results(reward, SAMPLERS[name])
    assert not called
    if alone is not None:
        np.testing.assert_allclose(
            together[0].log_weights, alone.state.log_weights, atol=1e-4
        )
    # In other company, too, and in other batches.
    for constant, value in {"CHEAP": 0, "READS": 2, "BURST": 3}.items():
        monkeypatch.setattr(sizes_module, constant, value)
    for left, right in zip(
        together[::-1], results(reward, SAMPLERS[name], PROBLEMS[::-1]), strict=True
    ):
        test_engine.same(left, right)


@pytest.mark.long
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("reads", [1, 3, 8])
def test_a_function_that_fails_costs_its_problem(monkeypatch, name, reads):
    whole = results(TEXT, SAMPLERS[name])
    monkeypatch.setattr(sizes_module, "READS", reads)
    monkeypatch.setattr(sizes_module, "CHEAP", 0)
    lanes, release = [], Lane._release

    def watch(self, places):
        release(self, places)
        lanes.append(self)

    monkeypatch.setattr(Lane, "_release", watch)
    last = {text[:9] for text in whole[3].texts if len(text) > 8}
    others = {text[:9] for i in (0, 1, 2, 4) for text in whole[i].texts}
    assert last - others

    def fails(texts):
        if any(text[:9] in last - others for text in texts):
            raise ZeroDivisionError("not these letters")
        return count(texts)

    with pytest.raises(ProblemError, match=r"1 problem .*3 \(ZeroD") as caught:
        results(TextReward(fails, tiny.decode), SAMPLERS[name])
    assert caught.value.steps[3] >= 1
    assert f"at step {caught.value.steps[3]})" in str(caught.value)
    assert "not these letters" in caught.value.tracebacks[3]
    assert "in fails" in caught.value.tracebacks[3]
    # Nothing that is kept holds what the run had in memory.
    (error,) = caught.value.failures.values()
    assert error.__traceback__ is None
    kept = [result for result in whole if result.problem_id != 3]
    assert len(caught.value.results) == len(kept)
    for left, right in zip(caught.value.results, kept, strict=True):
        test_engine.same(left, right)
    for lane in lanes:
        assert lane.store.policy.tables.num_used == 0


@pytest.mark.long
def test_only_rows_that_took_a_step_are_shown_to_a_function(monkeypatch):
    """Steps that cannot be repeated under another prefix are none."""
    boundary = step_boundary(
        [b"", *(letter.encode() for letter in tiny.ALPHABET[:5])],
        [b"cc", b"a"],
        [0],
        min_step_tokens=2,
    )
    shown, took, rows_read, score = [], [], [], StepReader._score

    def count_rows(self, rows, told):
        took.append(int((told.lengths > self.population.lengths[rows]).sum()))
        rows_read.append(len(rows))
        return score(self, rows, told)

    monkeypatch.setattr(StepReader, "_score", count_rows)

    class Watched(TextReward):
        def score_rows(self, rows):
            shown.extend(tuple(row.tokens) for row in rows)
            return super().score_rows(rows)

    reward = Watched(count, tiny.decode)
    target = tiny.target(boundary=boundary, reward=reward, log_truncation=-1.0)
    impossible, repeat = [], ReasoningStore.repeat_step

    class Store(ReasoningStore):
        def repeat_step(self, *arguments):
            step, never = repeat(self, *arguments)
            jax.debug.callback(lambda n: impossible.append(int(n)), never.sum())
            return step, never

    policy, _ = tiny.models(6, sharpness=0.5)
    runner = Engine(target, policy, None, encode=tiny.encode, decode=tiny.decode)
    for programs in runner._programs:
        programs.store = Store(programs.target)
    sampler = samplers.particle_gibbs(num_sweeps=3, ancestor_sampling=True)
    problems = [Problem(i, word, "") for i, word in enumerate(("abc", "dec", "bad"))]
    results = runner.run(sampler, KEY, problems, 24, extract=test_engine.extract)
    assert len(results) == 3
    assert sum(impossible) > 0
    assert len(shown) == sum(took) < sum(rows_read)


@pytest.mark.long
@pytest.mark.parametrize("aggregation", [None, "min"])
def test_an_error_that_is_raised_again_and_again_names_each_step(aggregation):
    whole = results(TEXT, SAMPLERS["filter"])
    once = ZeroDivisionError("always the same")

    def fails(texts):
        raise once

    reward = TextReward(fails, tiny.decode)
    if aggregation is not None:
        reward = Aggregated(reward, aggregation, 8)
    with pytest.raises(ProblemError, match="5 problems failed") as caught:
        results(reward, SAMPLERS["filter"])
    assert caught.value.steps == dict.fromkeys(range(len(whole)), 1)


@pytest.mark.long
def test_a_second_run_asks_the_function_again():
    """Nothing of an earlier run is remembered: the function may have changed."""
    sign = [1.0]

    def score(texts):
        return [sign[0] * number for number in count(texts)]

    policy, _ = tiny.models()
    reward = Aggregated(TextReward(score, tiny.decode), "last", 8)
    target = tiny.target(reward=reward, log_truncation=-1.0)
    runner = Engine(target, policy, None, encode=tiny.encode, decode=tiny.decode)

    def run_once():
        sampler, settings = SAMPLERS["filter"], {"extract": test_engine.extract}
        return runner.run(sampler, KEY, PROBLEMS[:1], 8, **settings)[0]

    first = run_once()
    test_engine.same(first, run_once())
    sign[0] = -1.0
    changed = run_once()
    assert np.abs(first.log_weights - changed.log_weights).max() > 0.1


def test_an_error_that_cannot_be_shown_loses_no_result():
    class Odd(Exception):
        def __repr__(self):
            raise RuntimeError("no words")

    error = ProblemError({1: Odd(), 2: ValueError("two")}, {1: 3})
    assert "1 (Odd at step 3), 2 (ValueError('two'))" in str(error)


@pytest.mark.long
def test_a_problem_that_fails_as_steps_are_repeated_leaves_no_row_behind(monkeypatch):
    sampler, repeating = SAMPLERS["repeats"], []
    repeat, decide = StepReader.repeat, Lane._decide

    def watch(self, rows, sources):
        repeating.append(rows)
        failed = repeat(self, rows, sources)
        repeating.pop()
        return failed

    def check_queue(self, ready):
        yield from decide(self, ready)
        places = np.asarray(self.queue, int) // self.method.plan.rows
        assert (self.population.index[places] >= 0).all()

    def fails(question, text, ended):
        if repeating and question == "fin":
            raise ZeroDivisionError("not this problem")
        return check(question, text, ended)

    whole = results(Verifier(check, tiny.decode), sampler)
    monkeypatch.setattr(StepReader, "repeat", watch)
    monkeypatch.setattr(Lane, "_decide", check_queue)
    with pytest.raises(ProblemError, match=r"1 problem .*3 \(ZeroD") as caught:
        results(Verifier(fails, tiny.decode), sampler)
    kept = [result for result in whole if result.problem_id != 3]
    for left, right in zip(caught.value.results, kept, strict=True):
        test_engine.same(left, right)


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (None, "returned None"),
        (0.5, r"numbers of shape \(\)"),
        ([0.5], r"numbers of shape \(1,\)"),
        ([0.5, None], "None"),
        (["0.5", "0.1"], "0.5"),
        ([[0.5], [0.1]], r"shape \(2, 1\)"),
        ([[0.5], [0.1, 0.2]], "returned"),
        ({}, "returned"),
    ],
)
def test_what_is_not_a_number_for_each_text_is_a_sentence(gives, says):
    with pytest.raises(RewardError, match=rf"given 2 texts and .*{says}.*\.$"):
        check_scores(gives, 2)


@pytest.mark.parametrize(
    "gives", [[1, 2], (1.0, 2.0), np.asarray([1, 2]), jnp.asarray([1, 2], jnp.bfloat16)]
)
def test_numbers_of_every_kind_are_numbers(gives):
    assert check_scores(gives, 2).tolist() == [1.0, 2.0]


def test_who_is_to_blame_is_found_among_many():
    def fails_on_odd(texts):
        if any(len(text) % 2 for text in texts):
            raise RewardError("odd")
        return [len(text) for text in texts]

    reward = TextReward(fails_on_odd, tiny.decode)
    rows = [Prefix(None, [1] * n, False, False) for n in (2, 3, 4, 5)]
    found, errors = score_each(reward, rows)
    assert found.tolist() == [2.0, 0.0, 4.0, 0.0]
    assert sorted(errors) == [1, 3]
