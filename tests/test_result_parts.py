"""A result says what its numbers estimate, is built in one place and shows itself."""

import math

import jax
import numpy as np
import pytest
from fake_world import fake_world, vary

from tsi import samplers
from tsi.accuracy.diagnostics import Diagnosis
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.plans.methods import METHODS, sampler_of
from tsi.experiments.plans.run_method import run_method, stream_method
from tsi.results.build import build_result, price_without_reward
from tsi.results.estimand import Estimand, estimand_of
from tsi.results.ledger import Ledger
from tsi.results.parts import FinalParticles, Steps, first_particles, join_particles
from tsi.results.selection import answer_posterior
from tsi.weights import weight_dtype


def result_of(size=4):
    world, sampler = fake_world(), sampler_of("smc", 5)
    return world.engine.result(sampler, "smc", 0, world.problems[0], size, None)


def particles_of(answers, log_weights, rewards, **more):
    return FinalParticles(
        [f"text {n}" for n in range(len(answers))],
        answers,
        np.asarray(rewards),
        np.asarray(log_weights, np.float64),
        **more,
    )


def build(estimand, particles):
    size = len(particles.answers)
    return build_result(
        7,
        estimand,
        particles,
        Steps(np.ones(2), np.tile(np.arange(size), (2, 1))),
        Diagnosis(0.25, {"a": 0.1, "b": 0.1}, 0.5),
        log_evidence=-2.0,
        num_recoveries=1,
        num_invalid=2,
        num_truncated=3,
        ledger=Ledger(size, 10, 20, 1e6, 0.5),
    )


def test_a_search_a_filter_and_a_chain_say_what_they_estimate():
    search = estimand_of(samplers.mcts())
    assert not search.has_target
    assert not search.is_weighted_sample
    assert search.evidence == "none, because the method has no target"
    smc = estimand_of(samplers.smc())
    assert smc.is_weighted_sample
    assert smc.evidence == "sum of p(path) exp(path log weight)"
    power = estimand_of(samplers.power_sampling(4.0))
    assert power.has_target
    assert power.chain
    assert not power.is_weighted_sample
    assert power.evidence == "sum of p(path)^4 exp(path log weight)"


def test_parallel_tempering_names_the_temperatures_that_its_evidence_has_in_it():
    ladder = (1.0, 2.0, 8.0)
    estimand = estimand_of(samplers.parallel_tempering(temperatures=ladder))
    assert estimand.auxiliary_temperatures == ladder[1:]
    assert estimand.evidence.endswith("times those of 2 other temperatures (2, 8)")
    adaptive = samplers.parallel_tempering(temperatures=ladder, adapt_sweeps=1)
    unknown = estimand_of(adaptive).auxiliary_temperatures
    assert len(unknown) == 2
    assert all(map(math.isnan, unknown))


@pytest.mark.parametrize("name", METHODS)
def test_results_say_of_every_method_what_its_sampler_does(name):
    world, sampler = fake_world(1), sampler_of(name, 5)
    size = 1 if METHODS[name].is_deterministic else METHODS[name].min_particles
    (result,) = run_method(world, name, jax.random.key(0), world.problems, size)
    estimand = result.estimand
    assert estimand.has_target == (sampler.path_log_weight is not None)
    assert estimand.has_target != math.isnan(result.log_evidence)
    assert estimand.select == sampler.select
    assert estimand.chain == getattr(sampler, "chain", False)
    others = getattr(sampler, "auxiliary", ())
    assert len(estimand.auxiliary_temperatures) == len(others)
    assert estimand.reads_reward == METHODS[name].reads_reward


def test_wrong_arguments_of_a_method_fail_before_its_first_result():
    world, key = fake_world(1), jax.random.key(0)
    with pytest.raises(UnknownNameError, match="no method named 'smcc'"):
        stream_method(world, "smcc", key, world.problems, 4)
    with pytest.raises(ConfigurationError, match=r"0\.4, and not 1"):
        stream_method(world, "smc@0.4", key, world.problems, 4, temperature=1.0)

    def refuse(*_, **__):
        raise ConfigurationError("a prompt is too long")

    world.engine.stream = refuse
    with pytest.raises(ConfigurationError, match="too long"):
        stream_method(world, "smc", key, world.problems, 4)


@pytest.mark.parametrize(
    ("rule", "selected"),
    [("posterior", "b"), ("argmax", "c"), ("vote", "a"), ("weighted_vote", "c")],
)
def test_posterior_and_selection_follow_from_particles_and_rule(rule, selected):
    particles = particles_of(
        ["a", "a", "b", "c"], np.log([0.5, 0.5, 2.0, 1.0]), [0.1, 0.1, 0.2, 0.9]
    )
    result = build(Estimand(select=rule), particles)
    assert result.selected == selected
    assert result.answer_posterior == pytest.approx({"b": 0.5, "a": 0.25, "c": 0.25})
    assert result.log_weights.dtype == weight_dtype()
    assert result.log_evidence == -2.0
    assert result.evidence.standard_error == 0.5
    assert result.diagnostics[:4] == (1, 2, 3, 0.5)


def test_probabilities_are_those_of_the_weights_before_they_are_rounded():
    log_weights = np.log([0.7, 0.3]) + 1e-9 * np.array([1.0, -1.0])
    result = build(Estimand(), particles_of(["a", "b"], log_weights, [0.5, 0.5]))
    assert result.answer_posterior == answer_posterior(["a", "b"], log_weights)


def test_without_a_target_there_is_no_evidence():
    particles = particles_of(["a", "b"], [0.0, 0.0], [0.5, 0.5])
    result = build(Estimand(has_target=False), particles)
    assert math.isnan(result.log_evidence)
    assert math.isnan(result.evidence.variance)


def test_particles_are_cut_and_joined_field_by_field():
    one = particles_of(
        ["a", None], [0.0, 1.0], [0.1, 0.2], truncated=np.array([True, False])
    )
    two = particles_of(
        ["b"], [2.0], [0.3], truncated=np.array([True]), step_texts=[["b"]]
    )
    whole = join_particles([one, two])
    assert whole.answers == ["a", None, "b"]
    assert whole.truncated.tolist() == [True, False, True]
    # One of them does not keep steps.
    assert whole.step_texts is None
    assert join_particles([two, one]).step_texts is None
    again = first_particles(whole, 2)
    assert again.texts == one.texts
    assert again.log_corrections is None
    for field in ("rewards", "log_weights", "truncated"):
        np.testing.assert_array_equal(getattr(again, field), getattr(one, field))


def test_what_reads_no_reward_is_charged_for_none():
    result = result_of()
    free = price_without_reward(result)
    assert free.ledger.reward_tokens == 0
    assert free.ledger.flops < result.ledger.flops
    assert not free.estimand.reads_reward


def test_a_result_shows_itself_in_a_few_short_lines():
    result = vary(
        result_of(),
        posterior={
            "probabilities": {"1" * 60: 0.5} | {str(n): 0.05 for n in range(10)},
            "errors": {"1" * 60: 0.125},
            "selected": "1" * 60,
        },
        evidence={"log_estimate": -1.5, "variance": 0.04},
    )
    lines = repr(result._replace(problem_id="x" * 100)).splitlines()
    assert max(map(len, lines)) <= 88
    assert len(lines) == 6 + len(result.notes)
    text = repr(result)
    assert text.startswith("Result of problem 0: answer '1111")
    assert "0.500 ± 0.125, '0' 0.050, " in text
    assert text.count("more") == 1
    assert "log evidence  -1.500 ± 0.200\n" in text
    search = repr(vary(result, estimand={"has_target": False}))
    assert "log evidence  none, because the method has no target" in search
    assert "posterior" not in search
    together = vary(result, estimand={"auxiliary_temperatures": (2.0,)})
    assert "± 0.200, times those of 1 other temperatures" in repr(together)
    bare = vary(
        result,
        posterior={"probabilities": {}, "selected": None},
        steps={"ess": np.full(3, np.nan)},
    )
    assert "no answers" in repr(bare)
    assert "ESS           none, because" in repr(bare)
