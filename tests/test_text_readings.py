"""Reward models that read text, between the engine's programs: what `tsi.run` gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reading_rewards as kinds
import test_engine
import test_reward_engine as engines
import tiny_language as tiny

from tsi import samplers
from tsi.engine import engine as engine_module
from tsi.reasoning import ReasoningParams
from tsi.run import run

KEY = jax.random.key(3)
FILTER = samplers.particle_filter()
EXPLORERS = {
    "tree": samplers.mcts(),
    "repeats": samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
}


def results(name, sampler, problems=engines.PROBLEMS, **changes):
    runner = engines.engine(name, 1.0, **changes)
    return runner.run(sampler, KEY, problems, 4, extract=test_engine.extract)


def check_against_run(name, sampler, result):
    """Particle by particle, and what the ledger says of the reward model."""
    runner = engines.engine(name, 1.0)
    problem = engines.PROBLEMS[result.problem_id]
    prompts = tiny.prompts(problem.prompt)
    asked = runner.target.reward.prepare([problem.prompt])
    params = ReasoningParams(
        runner.policy, runner.reward, prompts._replace(reward=asked), jnp.float32(1.0)
    )
    alone = jax.jit(lambda key, params: run(sampler, runner.target, key, 4, params))
    final = alone(jax.random.fold_in(KEY, problem.id), params)
    rows = final.particles
    texts = [
        tiny.decode(row[:n].tolist())
        for row, n in zip(np.asarray(rows.tokens), rows.lengths, strict=True)
    ]
    assert texts == result.texts
    rewards = jax.nn.sigmoid(rows.log_odds)
    np.testing.assert_allclose(result.rewards, rewards, atol=1e-4)
    np.testing.assert_allclose(final.state.log_weights, result.log_weights, atol=1e-3)
    return final


@pytest.mark.parametrize("name", kinds.KINDS)
def test_forks_read_what_they_read_within_one_program(name):
    result = results(name, FILTER)[0]
    assert len(set(result.texts)) > 1
    assert (result.ancestors != np.arange(4)).any()
    final = check_against_run(name, FILTER, result)
    cost = final.particles.cost
    np.testing.assert_array_equal(result.slots.reward_tokens, cost.reward_read)


@pytest.mark.parametrize("name", ["rlhflow", "likelihood"])
@pytest.mark.parametrize("explorer", EXPLORERS)
def test_explorers_read_what_they_read_within_one_program(name, explorer):
    sampler = EXPLORERS[explorer]
    result = results(name, sampler)[0]
    assert len(set(result.texts)) > 1
    check_against_run(name, sampler, result)


@pytest.mark.parametrize("name", ["rlhflow", "math-shepherd", "likelihood"])
@pytest.mark.parametrize("explorer", EXPLORERS)
def test_batches_and_company_change_no_reading(monkeypatch, name, explorer):
    sampler = EXPLORERS[explorer]
    together = results(name, sampler)
    for constant, value in {"CHEAP": 0, "READS": 2, "BURST": 3}.items():
        monkeypatch.setattr(engine_module, constant, value)
    alone = results(name, sampler, engines.PROBLEMS[::-1])[::-1]
    for left, right in zip(together, alone, strict=True):
        test_engine.same(left, right)
        np.testing.assert_allclose(left.rewards, right.rewards, atol=1e-4)
