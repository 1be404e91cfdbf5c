"""Rounds stop when their rule says so, and what they merge to is one honest result."""

import signal

import jax
import numpy as np
import pytest
from fake_world import fake_world, vary

from tsi import samplers
from tsi.engine.adaptive import Rounds, run_rounds
from tsi.engine.stopping import (
    answer_error_below,
    beta_confidence,
    dirichlet_confidence,
    evidence_error_below,
    sure_majority,
)
from tsi.errors import (
    ConfigurationError,
    ProblemError,
    Stopped,
    UnknownNameError,
)
from tsi.experiments.plans.method_list import METHODS
from tsi.experiments.plans.methods import sampler_of
from tsi.results.rounds import answer_errors_between, merge_rounds
from tsi.results.selection import answer_posterior

SAMPLER = sampler_of("self_consistency", 5)


def never(rounds):
    return False


def results_of(masses, size=4):
    """Rounds whose particles answer "a" or "b" with the given masses, [R, 2]."""
    world = fake_world(1)
    base = world.engine.result(SAMPLER, "self_consistency", 0, world.problems[0], 2, 1)
    rounds = []
    for a, b in masses:
        mean = (a + b) / 2
        rounds.append(
            vary(
                base,
                estimand={"select": "posterior"},
                particles={
                    "answers": ["a", "b"],
                    "log_weights": np.log([a / mean, b / mean]),
                },
                evidence={"log_estimate": float(np.log(mean))},
            )
        )
    return rounds


def test_beta_confidence_is_that_of_a_beta_posterior():
    # Beta(2, 1) has the distribution function x^2.
    assert beta_confidence(1, 0) == pytest.approx(0.75)
    assert beta_confidence(3, 3) == pytest.approx(0.5)


def test_dirichlet_confidence_agrees_with_beta_symmetry_and_simulation():
    assert dirichlet_confidence([5, 2]) == pytest.approx(
        beta_confidence(5, 2), abs=1e-6
    )
    assert dirichlet_confidence([2, 2, 2]) == pytest.approx(1 / 3, abs=1e-6)
    draws = np.random.default_rng(0).dirichlet([7, 5, 2, 2], 200_000)
    best = (draws.argmax(1) == 0).mean()
    error = np.sqrt(best * (1 - best) / 200_000)
    assert abs(dirichlet_confidence([6, 4, 1, 1]) - best) < 4 * error


def test_each_problem_stops_by_itself_and_pays_for_its_own_rounds():
    world = fake_world(12)

    def stop(rounds):
        return len(rounds) > rounds[0].problem_id % 4

    rounds = Rounds(2, 3, stop)
    results = run_rounds(
        world.engine, SAMPLER, jax.random.key(0), world.problems, rounds, extract=str
    )
    for problem, result in zip(world.problems, results, strict=True):
        taken = min(problem.id % 4 + 1, 3)
        assert result.problem_id == problem.id
        assert len(result.answers) == result.ledger.rollouts == 2 * taken
    asked = [ids for _, _, _, ids in world.engine.calls]
    assert [len(ids) for ids in asked] == [12, 9, 6]
    alone = world.engine.run(SAMPLER, jax.random.key(0), world.problems, 2, extract=str)
    spent = sum(result.ledger.seconds for result in results)
    assert spent == pytest.approx((12 + 9 + 6) * alone[0].ledger.seconds, rel=0.01)


class FailingEngine:
    """A fake engine for which problem 1 fails in the second of three rounds."""

    def __init__(self, engine, error):
        self.engine, self.error, self.num_calls = engine, error, 0

    def run(self, sampler, key, problems, num_particles, **settings):
        self.num_calls += 1
        results = self.engine.run(sampler, key, problems, num_particles, **settings)
        if self.num_calls == 2:
            self.error.results = tuple(r for r in results if r.problem_id != 1)
            raise self.error
        return results


def results_despite(error, stop, message=None):
    """What three rounds of 2 particles leave if the second one raises an error."""
    world = fake_world(3)
    failing, key = FailingEngine(world.engine, error), jax.random.key(0)
    rounds = Rounds(2, 3, stop)
    with pytest.raises(type(error), match=message) as raised:
        run_rounds(failing, SAMPLER, key, world.problems, rounds, extract=str)
    return raised.value.results


def test_a_problem_that_fails_in_a_round_costs_no_other():
    error = ProblemError({1: ValueError("broken")}, {1: 2})
    results = results_despite(error, never, r"1 \(.*broken.* at step 2")
    assert [result.problem_id for result in results] == [0, 2]
    assert all(result.ledger.rollouts == 6 for result in results)


def test_a_signal_keeps_the_problems_that_had_stopped():
    def stop(rounds):
        return rounds[0].problem_id == 0

    results = results_despite(Stopped(signal.SIGTERM), stop)
    assert [result.problem_id for result in results] == [0]
    assert results[0].ledger.rollouts == 2


def test_a_rule_that_fails_costs_its_problem():
    world = fake_world(3)

    def stop(rounds):
        return rounds[0].problem_id == 2 or 1 / rounds[0].problem_id > 2

    with pytest.raises(ProblemError, match=r"0 .*ZeroDivisionError") as raised:
        run_rounds(
            world.engine,
            SAMPLER,
            jax.random.key(0),
            world.problems,
            Rounds(2, 3, stop),
            extract=str,
        )
    assert [result.problem_id for result in raised.value.results] == [1, 2]


@pytest.mark.parametrize("error", [Stopped(signal.SIGTERM), KeyboardInterrupt()])
def test_a_signal_between_rounds_keeps_the_problems_that_had_stopped(error):
    world = fake_world(2)

    def stop(rounds):
        if rounds[0].problem_id == 1:
            raise error
        return True

    with pytest.raises(Stopped) as raised:
        run_rounds(
            world.engine,
            SAMPLER,
            jax.random.key(0),
            world.problems,
            Rounds(2, 3, stop),
            extract=str,
        )
    assert [result.problem_id for result in raised.value.results] == [0]


def test_rounds_spend_the_whole_budget():
    for method in (METHODS["adaptive_consistency"], METHODS["adaptive_smc"]):
        for budget in range(1, 40):
            rounds = method.rounds(budget)
            assert rounds.size * rounds.max_rounds == budget
            assert rounds.size <= 4


def test_rounds_have_keys_of_their_own():
    world = fake_world(1)
    rounds = Rounds(2, 4, never)
    run_rounds(
        world.engine, SAMPLER, jax.random.key(0), world.problems, rounds, extract=str
    )
    assert len({seed for _, seed, _, _ in world.engine.calls}) == 4


def test_merged_rounds_are_weighted_by_their_evidence():
    rounds = results_of([(1.0, 1.0), (3.0, 1.0), (0.5, 2.5)])
    result = merge_rounds(rounds)
    assert result.answer_posterior["a"] == pytest.approx(4.5 / 9.0)
    assert result.log_evidence == pytest.approx(np.log(9.0 / 6.0))
    weights = np.exp(result.log_weights.astype(float))
    assert weights.mean() == pytest.approx(1.0, abs=1e-6)
    assert answer_posterior(result.answers, result.log_weights) == pytest.approx(
        result.answer_posterior
    )


def test_a_search_has_no_evidence_to_be_uncertain_about():
    rounds = results_of([(1.0, 1.0)] * 3)
    whole = merge_rounds(rounds)
    assert whole.evidence.variance == 0.0
    searches = [vary(r, estimand={"has_target": False}) for r in rounds]
    searched = merge_rounds(searches)
    assert np.isnan(searched.evidence.variance)
    assert np.isnan(searched.log_evidence)
    assert np.isnan(searched.steps.ess).all()
    # Independent runs do tell how far off their mean is.
    assert searched.posterior.errors.keys() == whole.posterior.errors.keys()
    unknown = [vary(r, evidence={"log_estimate": np.nan}) for r in searches]
    again = merge_rounds(unknown)
    np.testing.assert_array_equal(again.log_weights, searched.log_weights)
    chained = merge_rounds([vary(r, estimand={"chain": True}) for r in rounds])
    assert np.isnan(chained.steps.ess).all()
    assert chained.log_evidence == pytest.approx(0.0)


def test_rounds_of_no_evidence_leave_equal_weights_and_no_nan():
    rounds = results_of([(1, 1)] * 3)
    rounds = [vary(r, evidence={"log_estimate": -np.inf}) for r in rounds]
    result = merge_rounds(rounds)
    assert result.log_evidence == -np.inf
    assert not np.isnan(result.log_weights).any()
    assert not answer_error_below(0.1, 2)(rounds)
    assert not evidence_error_below(0.1, 2)(rounds)


def test_errors_between_rounds_are_those_of_repeated_experiments():
    rng = np.random.default_rng(1)
    shares, errors = [], []
    for _ in range(400):
        masses = rng.gamma(2.0, size=(60, 2)) * [1.0, 0.6]
        rounds = results_of(masses)
        shares.append(merge_rounds(rounds).answer_posterior["a"])
        errors.append(answer_errors_between(rounds)["a"])
    # 400 experiments know their spread to 3.5 %.
    assert np.mean(errors) == pytest.approx(np.std(shares), rel=0.12)


def test_rules_stop_where_they_say():
    rounds = results_of([(1.0, 1.0)] * 5)
    assert evidence_error_below(0.01)(rounds)
    assert not evidence_error_below(0.01)(rounds[:3])
    spread = results_of([(1.0, 2.0), (2.0, 1.0), (0.2, 2.0), (3.0, 0.4)])
    error = answer_errors_between(spread)["a"]
    assert answer_error_below(1.01 * error)(spread)
    assert not answer_error_below(0.99 * error)(spread)


def test_a_sure_majority_is_usually_the_right_one_and_cheaper():
    rng = np.random.default_rng(0)
    stop, wrong, spent = sure_majority(0.95), 0, 0
    (base,) = results_of([(1.0, 1.0)])
    for _ in range(300):
        rounds = []
        while len(rounds) < 16 and not stop(rounds):
            votes = rng.choice(["a", "b", "c"], 4, p=[0.6, 0.25, 0.15]).tolist()
            rounds.append(vary(base, particles={"answers": votes}))
        votes = [vote for r in rounds for vote in r.answers]
        wrong += max(sorted(set(votes)), key=votes.count) != "a"
        spent += len(votes)
    # Looking again and again errs more often than 5 %, and less than a tenth.
    assert wrong / 300 < 0.1
    assert spent / 300 < 24


def test_impossible_rules_are_refused():
    for make in (answer_error_below, evidence_error_below):
        with pytest.raises(ConfigurationError, match="positive bound"):
            make(0.0)
        with pytest.raises(ConfigurationError, match="two rounds"):
            make(0.1, 1)
    with pytest.raises(ConfigurationError, match=r"in \(0.5, 1\)"):
        sure_majority(1.0)
    with pytest.raises(UnknownNameError, match="stopping rule"):
        sure_majority(0.9, "magic")
    world = fake_world(1)
    with pytest.raises(ConfigurationError, match="size=0"):
        run_rounds(
            world.engine,
            samplers.smc(),
            jax.random.key(0),
            world.problems,
            Rounds(0, 1, never),
            extract=str,
        )
