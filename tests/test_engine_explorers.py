"""The engine gives explorers what `tsi.run` gives them, problem by problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from test_engine import PROBLEMS, engine, extract, same

from tsi import samplers
from tsi.engine import Engine
from tsi.reasoning import ReasoningParams
from tsi.run import run

SAMPLER = samplers.quest(0.5, num_chains=2)


@pytest.fixture(scope="module")
def results():
    return engine().run(SAMPLER, jax.random.key(7), PROBLEMS, 6, extract=extract)


def test_a_problem_gets_the_same_whatever_shares_its_batch(results):
    runner = engine(12)
    alone = runner.run(SAMPLER, jax.random.key(7), PROBLEMS[::-1], 6, extract=extract)
    for left, right in zip(results, alone[::-1], strict=True):
        same(left, right)


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


def test_solutions_part_in_the_genealogy_where_their_texts_do(results):
    for result in results:
        ancestors = result.ancestors
        assert ancestors.shape == (max(map(len, result.step_texts)), 6)
        for t in range(1, len(ancestors)):
            pasts = [tuple(steps[:t]) for steps in result.step_texts]
            for k, past in enumerate(pasts):
                assert ancestors[t, k] == pasts.index(past)
        assert np.isnan(result.pareto_k)
        assert set(result.answer_errors) == {a for a in result.answers if a}


def test_only_new_steps_are_paid_for(results):
    for result in results:
        whole = sum(len(text) + 1 for text in dict.fromkeys(result.texts))
        # Six rollouts' worth of proposals, each from its cut on.
        assert 0 < result.ledger.generated_tokens <= 6 * tiny.target().max_tokens
        read = result.ledger.reward_tokens - len(PROBLEMS[result.problem_id].prompt)
        assert read == result.ledger.generated_tokens
        assert result.ledger.rollouts == 6
        assert whole > 0


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


def test_steps_repeated_to_be_scored_cost_flops_and_reward_tokens():
    plain, ancestor = (
        engine()
        .run(
            samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=sampled),
            jax.random.key(1),
            PROBLEMS[:1],
            8,
            extract=extract,
        )[0]
        .ledger
        for sampled in (False, True)
    )
    # The same number of tokens is drawn, more or less; scoring pasts is extra.
    assert ancestor.reward_tokens > 1.5 * plain.reward_tokens
    assert ancestor.flops > 1.3 * plain.flops
    assert ancestor.reward_tokens > 1.5 * ancestor.generated_tokens
