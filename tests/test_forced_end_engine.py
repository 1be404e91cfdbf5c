"""Forced ends in the engine: in any batch, and where the policy cannot write them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine
import tiny_language as tiny

from tsi import samplers
from tsi.decoding.forced_end import ForcedEnd
from tsi.decoding.truncation import Truncation
from tsi.engine.engine import Engine
from tsi.engine.sizing import sizes as sizes_module
from tsi.reasoning.particles import ReasoningParams
from tsi.run import run

SAMPLERS = {
    "a particle filter": samplers.particle_filter(),
    "SMC": samplers.smc(),
    "particle Gibbs": samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
    "tree search": samplers.mcts(),
    "power sampling": samplers.power_sampling(alpha=2.0),
}


@functools.cache
def forcing_engine(max_rows):
    policy, reward = tiny.models(sharpness=1.0)
    string = tuple(tiny.encode("bcd"))
    limits = {"max_step_tokens": 6, "max_tokens": 16, "max_steps": 5}
    target = tiny.target(forced_end=ForcedEnd(string, 3), **limits)
    settings = {"repetition_penalty": 1.3, "temperature": 0.9, "max_rows": max_rows}
    models = {"encode": tiny.encode, "decode": tiny.decode}
    return Engine(target, policy, reward, **models, **settings)


# A filter draws and forks, particle Gibbs repeats, and power sampling cuts.
QUICK = ("a particle filter", "particle Gibbs", "power sampling")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in SAMPLERS
    ],
)
def test_the_engine_draws_as_tsi_run_in_any_batch(monkeypatch, name):
    sampler, runner = SAMPLERS[name], forcing_engine(2048)
    target, policy, reward = runner.target, runner.policy, runner.reward_model
    key, size = jax.random.key(4), 8

    def results(runner):
        problems = test_engine.PROBLEMS
        return runner.run(sampler, key, problems, size, extract=test_engine.extract)

    together = results(runner)
    alone = jax.jit(lambda key, p: run(sampler, target, key, size, p))
    for problem, result in zip(test_engine.PROBLEMS, together, strict=True):
        p = ReasoningParams(
            policy,
            reward,
            tiny.prompts(problem.prompt),
            jnp.float32(0.9),
            repetition_penalty=jnp.float32(1.3),
        )
        final = alone(jax.random.fold_in(key, problem.id), p)
        rows = zip(final.particles.tokens, final.particles.lengths, strict=True)
        assert [tiny.decode(row[:n].tolist()) for row, n in rows] == result.texts
        weights = np.asarray(final.state.log_weights)
        np.testing.assert_allclose(weights, result.log_weights, atol=1e-3)
        gaps = np.asarray(final.particles.log_prob - final.particles.log_proposal)
        np.testing.assert_allclose(gaps, result.particles.log_corrections, atol=1e-3)
        assert result.diagnostics.num_truncated == 0
        long = [text for text in result.texts if len(text) > 11]
        assert all("bcd" in text for text in long)
    assert any(len(text) > 11 for result in together for text in result.texts)
    for constant, value in {"CHEAP": 0, "BURST": 2, "READS": 2}.items():
        monkeypatch.setattr(sizes_module, constant, value)
    for left, right in zip(together, results(forcing_engine(8)), strict=True):
        test_engine.same(left, right)
        np.testing.assert_allclose(
            left.particles.log_corrections, right.particles.log_corrections, atol=1e-4
        )


@pytest.mark.long
def test_what_the_policy_cannot_write_has_no_weight():
    policy, reward = tiny.models(sharpness=1.0)
    # Never the likeliest token for these prompts.
    target = tiny.target(forced_end=ForcedEnd(tuple(tiny.encode("q")), 3))
    runner = Engine(
        target,
        policy,
        reward,
        encode=tiny.encode,
        decode=tiny.decode,
        truncation=Truncation(top_k=2),
    )
    problems, key = test_engine.PROBLEMS, jax.random.key(0)
    dead = 0
    for sampler in (samplers.smc(), samplers.quest(0.5)):
        results = runner.run(sampler, key, problems, 8, extract=test_engine.extract)
        for result in results:
            cut = result.particles.truncated
            np.testing.assert_array_equal(
                np.isneginf(result.particles.log_corrections), cut
            )
            for text, answer in zip(
                np.array(result.texts)[cut], np.array(result.answers)[cut], strict=True
            ):
                # It ends there, and not when it would have.
                assert (text[-1], answer) == ("q", None)
            assert result.diagnostics.num_invalid == 0
            assert not np.isnan(result.log_weights).any()
            if cut.all():
                assert "forced" in result.notes[0]
            dead += cut.sum()
    assert dead > 20
