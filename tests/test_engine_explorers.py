"""The engine gives explorers what `tsi.run` gives them, problem by problem."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from test_engine import PROBLEMS, extract, same, shared_engine

from tsi import samplers
from tsi.accuracy.degeneracy import common_past
from tsi.engine.engine import Engine
from tsi.engine.outcome import count_members, drop_weightless
from tsi.engine.outcomes import accepted_share, diagnose_store
from tsi.errors import ConfigurationError
from tsi.reasoning.particles import ReasoningParams
from tsi.results.estimand import estimand_of
from tsi.results.ledger import add_ledgers
from tsi.run import run

SAMPLER = samplers.quest(0.5, num_chains=2)


@pytest.fixture(scope="module")
def results():
    return shared_engine().run(SAMPLER, jax.random.key(7), PROBLEMS, 6, extract=extract)


@pytest.mark.long
def test_a_problem_gets_the_same_whatever_shares_its_batch(results):
    runner = shared_engine(12)
    alone = runner.run(SAMPLER, jax.random.key(7), PROBLEMS[::-1], 6, extract=extract)
    for left, right in zip(results, alone[::-1], strict=True):
        same(left, right)


@pytest.mark.long
def test_a_problem_gets_what_tsi_run_gives_it(results):
    target, (policy, reward) = tiny.target(), tiny.models()
    alone = jax.jit(lambda key, params: run(SAMPLER, target, key, 6, params))
    for problem, result in zip(PROBLEMS, results, strict=True):
        prompts = tiny.prompts(problem.prompt)
        params = ReasoningParams(policy, reward, prompts, jnp.float32(1.0))
        final = alone(jax.random.fold_in(jax.random.key(7), problem.id), params)
        rows = zip(final.particles.tokens, final.particles.lengths, strict=True)
        assert [tiny.decode(row[:n].tolist()) for row, n in rows] == result.texts
        assert len(result.log_weights) == len(result.texts) == 6
        assert float(final.state.log_evidence) == pytest.approx(
            result.log_evidence, abs=1e-3
        )


@pytest.mark.long
def test_solutions_part_in_the_genealogy_where_their_texts_do(results):
    for result in results:
        ancestors = result.steps.ancestors
        assert ancestors.shape == (max(map(len, result.particles.step_texts)), 6)
        for t in range(1, len(ancestors)):
            pasts = [tuple(steps[:t]) for steps in result.particles.step_texts]
            for k, past in enumerate(pasts):
                assert ancestors[t, k] == pasts.index(past)
        assert np.isnan(result.diagnostics.pareto_k)
        assert set(result.posterior.errors) == {a for a in result.answers if a}


def test_only_new_steps_are_paid_for(results):
    for result in results:
        whole = sum(len(text) + 1 for text in dict.fromkeys(result.texts))
        # Six rollouts' worth of proposals, each from its cut on.
        assert 0 < result.ledger.generated_tokens <= 6 * tiny.target().max_tokens
        read = result.ledger.reward_tokens - len(PROBLEMS[result.problem_id].prompt)
        assert read == result.ledger.generated_tokens
        assert result.ledger.rollouts == 6
        assert whole > 0


@pytest.mark.long
def test_a_proposal_temperature_is_corrected_for():
    policy, reward = tiny.models(sharpness=2.0)
    runner = Engine(
        tiny.target(log_truncation=0.0),
        policy,
        reward,
        encode=tiny.encode,
        decode=tiny.decode,
    )
    (result,) = runner.run(
        samplers.self_consistency(),
        jax.random.key(3),
        PROBLEMS[:1],
        512,
        extract=extract,
        proposal_temperature=1.1,
    )
    # Mean importance weights are one; here the mean was taken out of them.
    weights = np.exp(result.log_weights.astype(np.float64) + result.log_evidence)
    assert weights.std() > 0.1
    assert abs(weights.mean() - 1.0) < 4 * weights.std() / np.sqrt(512)


@pytest.mark.long
def test_steps_repeated_to_be_scored_cost_flops_and_reward_tokens():
    plain, ancestor = (
        shared_engine().run(
            samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=sampled),
            jax.random.key(1),
            PROBLEMS,
            8,
            extract=extract,
        )
        for sampled in (False, True)
    )
    plain, ancestor = (
        add_ledgers(*(result.ledger for result in results))
        for results in (plain, ancestor)
    )
    # The same number of tokens is drawn, more or less; scoring pasts is extra.
    assert ancestor.reward_tokens > 1.5 * plain.reward_tokens
    assert ancestor.flops > 1.3 * plain.flops
    assert ancestor.reward_tokens > 1.5 * ancestor.generated_tokens


def test_what_has_no_weight_is_no_answer_beside_what_has():
    weights = np.array([0.0, -np.inf, 0.5])
    assert drop_weightless(["7", "8", None], weights) == ["7", None, None]
    assert drop_weightless(["7", "8", None], np.full(3, -np.inf)) == ["7", "8", None]


@pytest.mark.long
def test_a_solution_that_a_chain_stays_at_is_counted_once():
    assert (
        count_members(np.array([4, 4, 2, 4]), np.array([True, True, True, False])) == 2
    )
    policy, reward = tiny.models(sharpness=4.0)
    runner = Engine(
        tiny.target(log_truncation=0.0),
        policy,
        reward,
        encode=tiny.encode,
        decode=tiny.decode,
    )
    runs = runner.run(
        samplers.quest(0.05), jax.random.key(2), PROBLEMS, 8, extract=extract
    )
    # A chain that rejects a move has its state among the members once more.
    assert any(
        r.particles.truncated.sum() > r.diagnostics.num_truncated > 0 for r in runs
    )


def test_a_run_without_evidence_knows_no_errors():
    log_weights = np.log(np.random.default_rng(0).pareto(2.0, 30) + 1.0)
    state = SimpleNamespace(log_weights=log_weights, log_evidence=-np.inf)
    steps = [[str(k), "end"] for k in range(30)]
    past, answers = common_past(steps), ["7"] * 20 + ["8"] * 10
    estimand = estimand_of(samplers.finished_branch_smc())
    lost = diagnose_store(estimand, state, past, answers)
    assert np.isnan(lost.pareto_k)
    assert all(np.isnan(error) for error in lost.answer_errors.values())
    state.log_evidence = 0.0
    known = diagnose_store(estimand, state, past, answers)
    assert np.isfinite(known.pareto_k)
    assert all(error > 0 for error in known.answer_errors.values())
    # Solutions with one first step are one family, and their luck is shared.
    one_start = common_past([["a", "end"]] * 15 + steps[15:])
    shared = diagnose_store(estimand, state, one_start, answers)
    assert shared.answer_errors["7"] > known.answer_errors["7"]


@pytest.mark.parametrize(
    "explorer",
    [
        samplers.mcts(),
        samplers.step_beam_search(),
        samplers.quest(0.5),
        samplers.particle_gibbs(),
        samplers.particle_gibbs(backward_sampling=True),
        samplers.pimh(),
        samplers.parallel_tempering(),
    ],
)
def test_searches_and_chains_state_no_errors(explorer):
    rng = np.random.default_rng(0)
    log_weights = np.log(rng.pareto(2.0, 30) + 1.0)
    state = SimpleNamespace(
        log_weights=log_weights, log_evidence=0.0, accepted=6, iteration=np.int32(9)
    )
    past = common_past([[str(k), "end"] for k in range(30)])
    answers = ["7"] * 20 + ["8"] * 10
    found = diagnose_store(estimand_of(explorer), state, past, answers)
    assert np.isnan(found.pareto_k)
    assert all(np.isnan(error) for error in found.answer_errors.values())
    if explorer.acceptance is None:
        assert np.isnan(accepted_share(explorer, state))
    else:
        # Nine moves, or nine systems of which the first is no move.
        assert accepted_share(explorer, state) in (6 / 9, 6 / 8)


def test_a_result_of_a_chain_tells_moves_and_no_sizes(results):
    for result in results:
        assert np.isnan(result.steps.ess).all()
        assert 0.0 <= result.diagnostics.acceptance_rate <= 1.0
        # Two chains, each of a first solution and two moves.
        moves = result.diagnostics.acceptance_rate * 4
        assert moves == pytest.approx(round(moves))
        assert all(np.isnan(e) for e in result.posterior.errors.values())
        assert result.steps.resampled is None


@pytest.mark.long
def test_at_temperature_zero_every_move_is_accepted():
    results = shared_engine().run(
        samplers.quest(0.5),
        jax.random.key(0),
        PROBLEMS[:2],
        4,
        extract=extract,
        temperature=0.0,
    )
    for result in results:
        assert len(set(result.texts)) == 1
        assert not np.isnan(result.log_weights).any()


def test_a_proposal_that_cannot_draw_what_the_policy_may_is_refused():
    with pytest.raises(ConfigurationError, match="no weight could correct"):
        shared_engine().run(
            samplers.smc(),
            jax.random.key(0),
            PROBLEMS[:1],
            2,
            extract=extract,
            proposal_temperature=0.0,
        )
