"""Cutting program paths back, replaying their steps, scoring them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from numpyro_programs import GAUSSIAN, SMC, Table, gaussian, gaussian_step
from scipy import stats

import tsi
from tsi import samplers
from tsi.bench.unbiasedness import judge_linear_gaussian
from tsi.numpyro import program_target
from tsi.targets.linear_gaussian import LinearGaussianTarget

KEY = jax.random.key(0)


def hidden_noise(t, x, params):
    """Has a site that `block` hides and that the potential depends on."""
    x = numpyro.sample("x", dist.Normal(0.8 * x, 1.0))
    noise = numpyro.sample("noise", dist.Normal())
    numpyro.factor("f", x * noise)
    return x + noise


def random_start(params):
    return numpyro.sample("start", dist.Normal(2.0, 0.1))


TARGETS = {
    "gaussian": gaussian(),
    "table": Table("unequal lengths").program(),
    "random start": program_target(random_start, gaussian_step, max_steps=4),
    "hidden": program_target(
        random_start, handlers.block(hidden_noise, hide=["noise"]), max_steps=4
    ),
}
PARAMS = {"table": Table("unequal lengths").target.params}


def finished(name, seed=0, num_particles=16):
    run = tsi.run(
        SMC, TARGETS[name], jax.random.key(seed), num_particles, PARAMS.get(name)
    )
    return run.particles


def same_where_taken(a, b, max_steps=4):
    """Equal particles, whatever is in their histories beyond their ends."""
    taken = np.arange(max_steps) < np.asarray(a.length)[:, None]

    def meaning(particles):
        history = particles.history._replace(key=None)
        steps = jax.tree.map(lambda leaf: np.asarray(leaf)[taken], history)
        return jax.tree.leaves(particles._replace(history=steps))

    # Not bitwise: programs that were compiled differently round differently.
    for x, y in zip(meaning(a), meaning(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_replaying_every_step_repeats_a_path(name):
    target, params, paths = TARGETS[name], PARAMS.get(name), finished(name)
    replay = jax.jit(lambda t, rows: target.replay(t, rows, paths, params))
    rows = target.init(jax.random.key(9), 16, params)
    log_probs = 0.0
    for t in range(4):
        rows, log_p = replay(t, rows)
        log_probs = log_probs + log_p
    same_where_taken(paths, rows)
    np.testing.assert_allclose(log_probs, target.log_prob(paths), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_a_path_cut_back_and_replayed_from_there_is_itself(name):
    target, params, paths = TARGETS[name], PARAMS.get(name), finished(name)
    depths = jnp.arange(16, dtype=jnp.int32) % 5
    rows = target.truncate(paths, depths, params)
    np.testing.assert_array_equal(rows.length, np.minimum(paths.length, depths))
    longer = np.asarray(paths.length > depths)
    np.testing.assert_array_equal(rows.finished, ~longer)
    other = target.truncate(rows, jnp.full(16, 4), params)
    same_where_taken(rows, other)
    replay = jax.jit(lambda t, rows: target.replay(t, rows, paths, params))
    for _ in range(4):  # each row at its own depth
        before = rows
        rows, log_p = replay(rows.length, rows)
        np.testing.assert_array_equal(log_p == 0, np.asarray(before.finished))
    same_where_taken(paths, rows)


def test_a_replayed_step_is_weighed_from_the_rows_own_past():
    target, paths, others = (
        TARGETS["gaussian"],
        finished("gaussian"),
        finished("gaussian", seed=1),
    )
    rows = target.truncate(paths, jnp.full(16, 2))
    rows, log_p = jax.jit(target.replay)(2, rows, others)
    x = np.asarray(others.history.latents["x"])[:, 2]
    before = np.asarray(paths.history.carry)[:, 1]
    expected = stats.norm.logpdf(x, GAUSSIAN.decay * before, GAUSSIAN.transition_scale)
    np.testing.assert_allclose(log_p, expected, rtol=1e-4)
    np.testing.assert_array_equal(rows.carry, x)


def test_rows_of_different_depths_take_their_own_steps():
    target, paths = TARGETS["gaussian"], finished("gaussian")
    depths = jnp.arange(16, dtype=jnp.int32) % 4
    rows = target.truncate(paths, depths)
    after, _ = jax.jit(target.propose)(KEY, rows.length, rows)
    np.testing.assert_array_equal(after.length, depths + 1)
    observed = GAUSSIAN.observations[np.asarray(depths)]
    expected = stats.norm.logpdf(observed, after.carry, GAUSSIAN.noise_scale)
    np.testing.assert_allclose(
        target.log_potential(rows.length, after), expected, rtol=1e-4
    )
    scale = np.where(depths == 0, GAUSSIAN.initial_scale, GAUSSIAN.transition_scale)
    log_p = stats.norm.logpdf(after.carry, GAUSSIAN.decay * rows.carry, scale)
    np.testing.assert_allclose(
        target.log_prob(after) - target.log_prob(rows), log_p, rtol=1e-3, atol=1e-4
    )


def test_the_start_is_drawn_with_the_first_step_and_cut_with_it():
    target = TARGETS["random start"]
    propose = jax.jit(target.propose)
    empty = target.init(KEY, 3)
    np.testing.assert_array_equal(empty.carry, 0.0)
    np.testing.assert_array_equal(target.log_potential(0, empty), 0.0)
    first, _ = propose(KEY, 0, empty)
    begun = first.initial["start"]
    assert (np.abs(begun - 2.0) < 0.6).all()
    log_p = stats.norm.logpdf(begun, 2.0, 0.1) + stats.norm.logpdf(
        first.carry, GAUSSIAN.decay * begun, GAUSSIAN.initial_scale
    )
    np.testing.assert_allclose(target.log_prob(first), log_p, rtol=1e-4)
    second, _ = propose(KEY, 1, first)
    np.testing.assert_array_equal(second.initial["start"], begun)
    cut = target.truncate(second, jnp.zeros(3, jnp.int32))
    again, _ = propose(jax.random.key(5), 0, cut)
    assert not np.isin(again.initial["start"], begun).any()


def test_a_whole_paths_densities_are_numpyros():
    """The same model as one numpyro program, scored by numpyro itself."""

    def model():
        x = numpyro.sample("start", dist.Normal(2.0, 0.1))
        for t in range(4):
            scale = GAUSSIAN.initial_scale if t == 0 else GAUSSIAN.transition_scale
            x = numpyro.sample(f"x{t}", dist.Normal(GAUSSIAN.decay * x, scale))
            y = dist.Normal(x, GAUSSIAN.noise_scale)
            numpyro.sample(f"y{t}", y, obs=float(GAUSSIAN.observations[t]))

    paths = finished("random start")
    sites = {f"x{t}": paths.history.latents["x"][:, t] for t in range(4)}
    sites["start"] = paths.initial["start"]
    expected = jax.vmap(lambda values: log_density(model, (), {}, values)[0])(sites)
    log_g = jnp.sum(paths.history.log_potential, axis=1)
    log_joint = TARGETS["random start"].log_prob(paths) + log_g
    np.testing.assert_allclose(log_joint, expected, rtol=1e-4)


@pytest.mark.long
def test_repeated_steps_of_a_guided_program_are_weighed_by_the_guide():
    def start(params):
        return jnp.zeros(())

    def step(t, x, params):
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.6))
        numpyro.sample("y", dist.Normal(x, 0.9), obs=params[t])
        return x

    def guide(t, x, params):
        numpyro.sample("x", dist.Normal(0.5 * x + 0.4 * params[t], 0.7))

    y = jnp.array([0.4, 1.1, -0.3])
    target = program_target(start, step, max_steps=3, proposal=guide)
    chain = samplers.particle_gibbs(num_sweeps=3, ancestor_sampling=True)
    runs = jax.jit(jax.vmap(lambda key: tsi.run(chain, target, key, 6, y)))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    known = LinearGaussianTarget(
        y, initial_scale=0.6, decay=0.8, transition_scale=0.6, noise_scale=0.9
    ).kalman()
    judged = judge_linear_gaussian(
        known, runs.particles.carry, runs.state.log_weights, runs.state.log_evidence
    )
    assert abs(judged.z) < 4
    assert judged.p_value > 1e-3
