"""numpyro programs as targets, judged by a Kalman filter, a table, each other."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro_programs import (
    GAUSSIAN,
    OBSERVED,
    RUNS,
    SMC,
    Table,
    gaussian,
    gaussian_start,
    gaussian_step,
    many,
    optimal_proposal,
    z_score,
)

import tsi
from tsi import samplers
from tsi.bench.unbiasedness import judge_linear_gaussian, judge_tabular
from tsi.errors import ConfigurationError
from tsi.numpyro import program_target
from tsi.target import Target
from tsi.targets.examples import EXAMPLES

KEY = jax.random.key(0)
FILTER = samplers.particle_filter("odds")


@pytest.mark.long
@pytest.mark.parametrize("sampler", [FILTER, SMC], ids=["filter", "smc"])
@pytest.mark.parametrize("proposal", [None, optimal_proposal])
def test_a_state_space_program_has_the_kalman_filters_posterior(sampler, proposal):
    x, log_weights, log_evidence = many(gaussian(proposal=proposal), sampler)
    test = judge_linear_gaussian(GAUSSIAN.kalman(), x, log_weights, log_evidence)
    assert abs(test.z) < 4
    assert test.p_value > 1e-3
    assert z_score(log_evidence, test.truth) == pytest.approx(test.z)


@pytest.mark.long
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_a_program_of_a_table_is_that_table(name):
    table = Table(name)
    carry, log_weights, log_evidence = many(
        table.program(), SMC, params=table.target.params
    )
    test = judge_tabular(
        table.target,
        table.target.truth(SMC.path_log_weight),
        carry["symbols"],
        log_weights,
        log_evidence,
    )
    assert abs(test.z) < 4
    assert test.p_value > 1e-3


def test_paths_stop_where_end_says_so():
    table = Table("unequal lengths")
    run = tsi.run(SMC, table.program(), KEY, 64, table.target.params)
    particles = run.particles
    symbols, length = particles.carry["symbols"], particles.length
    np.testing.assert_array_equal(length, (np.asarray(symbols) >= 0).sum(1))
    assert set(np.asarray(length)) == {1, 2, 3, 4}
    np.testing.assert_array_equal(
        np.asarray(particles.history.latents["symbol"])[symbols >= 0],
        np.asarray(symbols)[symbols >= 0],
    )


INITIAL = jnp.array([0.6, 0.3, 0.1])
TRANSITION = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]])
EMISSION = jnp.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
SEEN = jnp.array([0, 1, 1, 0, 1])


def hidden_start(params):
    """The chain's first state is drawn and observed before the first step."""
    state = numpyro.sample("first", dist.Categorical(INITIAL)).astype(jnp.int32)
    numpyro.sample("seen", dist.Categorical(EMISSION[state]), obs=SEEN[0])
    return state


def hidden_step(t, state, params):
    state = numpyro.sample("state", dist.Categorical(TRANSITION[state]))
    numpyro.sample("seen", dist.Categorical(EMISSION[state]), obs=SEEN[t + 1])
    return state.astype(jnp.int32)


@pytest.mark.long
def test_a_hidden_markov_model_has_the_forward_algorithms_evidence():
    target = program_target(hidden_start, hidden_step, max_steps=len(SEEN) - 1)
    state, log_weights, log_evidence = many(target, FILTER)
    alpha = np.asarray(INITIAL * EMISSION[:, SEEN[0]], np.float64)
    for seen in SEEN[1:]:
        alpha = (alpha @ np.asarray(TRANSITION)) * np.asarray(EMISSION)[:, seen]
    assert abs(z_score(log_evidence, alpha.sum())) < 4
    mass = np.exp(np.asarray(log_evidence)[:, None] + log_weights)
    for value in range(3):
        estimates = np.mean(mass * (np.asarray(state) == value), axis=1)
        assert abs(z_score(np.log(estimates + 1e-30), alpha[value], 0.01)) < 4


def volatility_step(t, h, params):
    h = numpyro.sample("h", dist.Normal(-0.2 + 0.9 * h, 0.5))
    numpyro.sample("y", dist.Normal(0.0, jnp.exp(h / 2)), obs=OBSERVED[t])
    return h


def volatility_proposal(t, h, params):
    numpyro.sample("h", dist.StudentT(4.0, -0.2 + 0.8 * h, 0.7))


@pytest.mark.long
def test_stochastic_volatility_does_not_depend_on_the_proposal():
    means, errors = [], []
    for proposal in (None, volatility_proposal):
        target = program_target(
            gaussian_start, volatility_step, max_steps=4, proposal=proposal
        )
        h, log_weights, log_evidence = many(target, SMC)
        mass = np.exp(np.asarray(log_evidence, np.float64)[:, None] + log_weights)
        features = np.stack([mass, mass * h, mass * h**2], -1).mean(1)
        means.append(features.mean(0))
        errors.append(features.std(0) / np.sqrt(RUNS))
    z = (means[0] - means[1]) / np.hypot(*errors)
    assert np.abs(z).max() < 4
    assert np.max(errors / np.abs(means)) < 0.01
    assert not np.allclose(means[0], means[1], rtol=1e-5)


def test_a_program_is_a_target_and_needs_a_step():
    assert isinstance(gaussian(), Target)
    with pytest.raises(ConfigurationError, match="max_steps >= 1"):
        gaussian(max_steps=0)


def test_a_particles_stream_does_not_depend_on_the_others():
    target = gaussian()
    propose = jax.jit(lambda particles: target.propose(KEY, 0, particles)[0])
    few, more = propose(target.init(KEY, 2)), propose(target.init(KEY, 5))
    np.testing.assert_array_equal(few.carry, more.carry[:2])
    assert len(np.unique(more.carry)) == 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"proposal": lambda t, x, _: numpyro.sample("z", dist.Normal())}, "'z'"),
        ({"proposal": gaussian_step}, "only draw"),
        ({"end": lambda t, x, _: x}, "one bool"),
    ],
)
def test_programs_that_do_not_fit_are_refused(change, match):
    with pytest.raises(ConfigurationError, match=match):
        tsi.run(SMC, gaussian(**change), KEY, 4)


def test_a_carry_that_changes_its_type_is_refused():
    target = program_target(lambda _: 0, gaussian_step, max_steps=2)
    with pytest.raises(ConfigurationError, match=r"int32.*float32"):
        tsi.run(SMC, target, KEY, 4)
