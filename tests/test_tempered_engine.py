"""Tempered targets on language models: the engine gives what `tsi.run` gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_language as tiny
from test_engine import PROBLEMS, extract, same, shared_engine

from tsi import samplers
from tsi.reasoning.particles import ReasoningParams
from tsi.run import run

CASES = {
    "tempered": (samplers.tempered_smc(num_levels=2), 24),
    "waste-free, pilot": (
        samplers.waste_free_smc(num_levels=1, chain_length=2, exponents="ess"),
        24,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_problem_gets_what_tsi_run_gives_it_whatever_shares_its_batch(name):
    explorer, budget = CASES[name]
    key, target, (policy, reward) = jax.random.key(7), tiny.target(), tiny.models()
    results = shared_engine().run(explorer, key, PROBLEMS, budget, extract=extract)
    others = shared_engine(12).run(
        explorer, key, PROBLEMS[::-1], budget, extract=extract
    )
    for left, right in zip(results, others[::-1], strict=True):
        same(left, right)
    alone = jax.jit(lambda key, params: run(explorer, target, key, budget, params))
    for problem, result in zip(PROBLEMS, results, strict=True):
        prompts = tiny.prompts(problem.prompt)
        params = ReasoningParams(policy, reward, prompts, jnp.float32(1.0))
        final = alone(jax.random.fold_in(key, problem.id), params)
        rows = zip(final.particles.tokens, final.particles.lengths, strict=True)
        assert [tiny.decode(row[:n].tolist()) for row, n in rows] == result.texts
        assert float(final.state.log_evidence) == pytest.approx(
            result.log_evidence, abs=1e-3
        )
        assert 0.0 <= result.diagnostics.acceptance_rate <= 1.0
        assert np.isfinite(result.steps.ess).all()
        assert result.ledger.rollouts == budget
        assert np.isnan(result.diagnostics.pareto_k)
