"""The driver: exact step counts, its key rule, thousands of runs at once, batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.errors import CapabilityError, ConfigurationError
from tsi.run import step_keys
from tsi.target import require
from tsi.targets import examples as tabular_examples


class Counter:
    """A target that counts the steps proposed to each particle and never finishes."""

    def init(self, key, num_particles, params):
        return jnp.zeros(num_particles)

    def propose(self, key, t, particles, params):
        return particles + params, jnp.zeros_like(particles)

    def log_potential(self, t, particles, params):
        return jnp.zeros_like(particles)

    def finished(self, particles):
        return jnp.zeros(particles.shape, bool)

    def gather(self, particles, ancestors):
        return particles[ancestors]


@pytest.mark.long
def test_exactly_max_steps_steps_are_proposed():
    for limit in (1, 2, 7):
        run = tsi.run(
            samplers.smc(), Counter(), jax.random.key(0), 4, 1.0, max_steps=limit
        )
        np.testing.assert_array_equal(run.particles, np.full(4, limit))
        assert int(run.num_steps) == limit
    run = tsi.run(samplers.smc(), Counter(), jax.random.key(0), 4, 1.0)
    assert int(run.num_steps) == 64


def test_params_are_arguments_that_may_be_mapped():
    sampler = samplers.self_consistency()
    many = jax.vmap(
        lambda p: tsi.run(sampler, Counter(), jax.random.key(0), 2, p, max_steps=3)
    )
    np.testing.assert_array_equal(
        many(jnp.array([1.0, 2.0])).particles, [[3.0, 3.0], [6.0, 6.0]]
    )


def test_a_run_stops_when_all_have_finished_and_leaves_later_infos_zero():
    target = tabular_examples.unequal_lengths()
    target.initial = target.proposal_initial = np.array([0.0, 0.0, 1.0])
    run = tsi.run(samplers.smc(), target, jax.random.key(0), 4)
    assert int(run.num_steps) == 1
    assert run.infos.ess.shape == (4,)
    assert float(run.infos.ess[0]) == 4.0
    np.testing.assert_array_equal(run.infos.ess[1:], 0.0)


@pytest.mark.long
def test_twenty_thousand_runs_fit_one_program():
    target, sampler = tabular_examples.smooth(), samplers.smc()
    many = jax.jit(jax.vmap(lambda key: tsi.run(sampler, target, key, 16)))
    runs = many(jax.random.split(jax.random.key(0), 20_000))
    assert runs.state.log_weights.shape == (20_000, 16)
    together = np.asarray(runs.particles.symbols).reshape(20_000, -1)
    assert len(np.unique(together, axis=0)) == 20_000


def test_the_key_rule_is_the_documented_one():
    # One step by hand, under the keys that the driver's documentation states.
    target, sampler, key = tabular_examples.peaked(), samplers.smc(), jax.random.key(9)
    key_init, key_steps = jax.random.split(key)
    particles = target.init(jax.random.fold_in(key_init, 1), 5)
    keys = step_keys(key_steps, 0)
    np.testing.assert_array_equal(
        jax.random.key_data(keys.propose),
        jax.random.key_data(jax.random.split(jax.random.fold_in(key_steps, 0), 3)[1]),
    )
    extended, _ = target.propose(keys.propose, jnp.asarray(0), particles)
    run = tsi.run(sampler, target, key, 5, max_steps=1)
    np.testing.assert_array_equal(run.particles.symbols, extended.symbols)


@pytest.mark.long
@pytest.mark.parametrize("num_islands", [1, 2])
def test_a_batched_sampler_gives_each_problem_its_own_run(num_islands):
    target = tabular_examples.peaked()
    sampler = samplers.smc(num_islands=num_islands, schedule=samplers.every_step)
    size, num_problems = 6, 5
    keys = jax.random.split(jax.random.key(2), num_problems)
    lifted = tsi.batch(sampler, num_problems)
    ask, tell = jax.jit(lifted.ask), jax.jit(lifted.tell)
    alone = jax.jit(lambda key: tsi.run(sampler, target, key, size))
    splits = jax.vmap(jax.random.split)(keys)
    key_init, key_steps = splits[:, 0], splits[:, 1]
    fold = jax.vmap(jax.random.fold_in, (0, None))
    state = lifted.init(fold(key_init, 0), size)
    rows = target.init(keys[0], num_problems * size)
    propose = jax.jit(
        lambda k, t, p: jax.vmap(lambda k, p: target.propose(k, t, p))(k, p)
    )
    for t in range(target.max_steps):
        step = jax.vmap(step_keys, (0, None))(key_steps, t)
        state, ancestors = ask(step.ask, state)
        rows = target.gather(rows, ancestors)
        grouped = jax.tree.map(
            lambda leaf: leaf.reshape(num_problems, size, *leaf.shape[1:]), rows
        )
        grouped, corrections = propose(step.propose, t, grouped)
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), grouped)
        state, info = tell(
            step.tell,
            state,
            target.log_potential(t, rows),
            corrections.reshape(-1),
            target.finished(rows),
        )
        assert info.ess.shape == (num_problems,)
    for problem, key in enumerate(keys):
        expected = alone(key)
        mine = np.asarray(rows.symbols).reshape(num_problems, size, -1)[problem]
        np.testing.assert_array_equal(mine, expected.particles.symbols)
        np.testing.assert_allclose(
            state.log_weights[problem], expected.state.log_weights, atol=1e-6
        )
        np.testing.assert_allclose(
            state.log_evidence[problem], expected.state.log_evidence, atol=1e-6
        )


@pytest.mark.long
def test_x64_mode_has_weights_in_float64_and_ancestors_in_int32():
    target = tabular_examples.peaked()
    with jax.enable_x64(True):
        for sampler in (samplers.smc(num_islands=2), samplers.rebase()):
            run = tsi.run(sampler, target, jax.random.key(0), 8)
            assert run.state.log_weights.dtype == jnp.float64
            assert run.infos.ancestors.dtype == jnp.int32


def test_impossible_sizes_are_reported():
    target, key = tabular_examples.smooth(), jax.random.key(0)
    with pytest.raises(ConfigurationError, match="at least one particle"):
        tsi.run(samplers.smc(), target, key, 0)
    with pytest.raises(ConfigurationError, match="at least one step"):
        tsi.run(samplers.smc(), target, key, 2, max_steps=0)
    with pytest.raises(ConfigurationError, match="at least one problem"):
        tsi.batch(samplers.smc(), 0)


def test_a_missing_capability_is_a_sentence():
    with pytest.raises(CapabilityError, match=r"particle Gibbs needs .* `replay`"):
        require(object(), "replay", "particle Gibbs")
    assert require(Counter(), "gather", "anyone")
