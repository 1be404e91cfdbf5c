"""numpyro handlers around a step mean what they mean around a model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro_programs import likelihood_weighting, many, z_score
from scipy import stats

import tsi
from tsi.errors import ConfigurationError
from tsi.numpyro import program_target

KEY = jax.random.key(0)
PLAIN = likelihood_weighting()


def start(params):
    return jnp.zeros(())


def pair(t, x, params):
    """Two latent sites and an observed one."""
    a = numpyro.sample("a", dist.Normal(0.5, 1.0))
    b = numpyro.sample("b", dist.Normal(a, 0.8))
    numpyro.sample("y", dist.Normal(b, 1.2), obs=0.3)
    return b


def one_step(program, num_particles=4, **changes):
    target = program_target(start, program, max_steps=1, **changes)
    particles = target.init(KEY, num_particles)
    particles, correction = jax.jit(target.propose)(KEY, 0, particles)
    return particles, correction, target.log_potential(0, particles)


def evidence(program, **changes):
    target = program_target(start, program, max_steps=1, **changes)
    return many(target, PLAIN, num_particles=32)[-1]


def normal(x, mean, variance):
    return stats.norm.pdf(x, mean, np.sqrt(variance))


def test_condition_makes_a_site_observed_and_weighs():
    program = handlers.condition(pair, data={"b": 0.7})
    particles, correction, log_g = one_step(program)
    latents = particles.history.latents
    assert set(latents) == {"a"}
    expected = stats.norm.logpdf(0.7, latents["a"][:, 0], 0.8)
    np.testing.assert_allclose(
        log_g, expected + stats.norm.logpdf(0.3, 0.7, 1.2), rtol=1e-5
    )
    np.testing.assert_array_equal(correction, 0.0)
    np.testing.assert_array_equal(particles.carry, np.float32(0.7))
    truth = normal(0.7, 0.5, 1.64) * normal(0.3, 0.7, 1.44)
    assert abs(z_score(evidence(program), truth)) < 4


def test_substitute_fixes_a_site_and_its_density_counts():
    program = handlers.substitute(pair, data={"b": 0.7})
    particles, correction, log_g = one_step(program)
    latents = particles.history.latents
    assert set(latents) == {"a", "b"}
    expected = stats.norm.logpdf(0.7, latents["a"][:, 0], 0.8)
    np.testing.assert_allclose(correction, expected, rtol=1e-5)
    np.testing.assert_allclose(log_g, stats.norm.logpdf(0.3, 0.7, 1.2), rtol=1e-5)
    truth = normal(0.7, 0.5, 1.64) * normal(0.3, 0.7, 1.44)
    assert abs(z_score(evidence(program), truth)) < 4


def test_block_of_an_observed_site_takes_its_weight_away():
    _, _, log_g = one_step(handlers.block(pair, hide=["y"]))
    np.testing.assert_array_equal(log_g, 0.0)


def test_block_of_a_latent_site_draws_it_and_keeps_it_out_of_the_path():
    program = handlers.block(pair, hide=["a"])
    particles, correction, _ = one_step(program)
    assert set(particles.history.latents) == {"b"}
    np.testing.assert_array_equal(correction, 0.0)
    assert len(np.unique(particles.carry)) == 4
    assert abs(z_score(evidence(program), normal(0.3, 0.5, 1 + 0.64 + 1.44))) < 4


@pytest.mark.parametrize(
    "program",
    [
        handlers.seed(pair, rng_seed=0),
        lambda t, x, _: numpyro.sample("a", dist.Normal(), rng_key=jax.random.key(0)),
    ],
    ids=["seed", "rng_key"],
)
def test_keys_that_all_particles_would_share_are_refused(program):
    with pytest.raises(ConfigurationError, match=r"'a' has its own random key"):
        one_step(program)


def test_a_hidden_site_may_be_seeded_from_the_inside():
    def program(t, x, params):
        with handlers.block(), handlers.seed(rng_seed=3):
            noise = numpyro.sample("noise", dist.Normal())
        return numpyro.sample("a", dist.Normal(noise, 1.0))

    particles, _, _ = one_step(program)
    assert set(particles.history.latents) == {"a"}


def test_scale_raises_a_density_to_a_power():
    program = handlers.scale(pair, scale=0.5)
    particles, correction, log_g = one_step(program)
    a, b = (particles.history.latents[n][:, 0] for n in "ab")
    log_p = stats.norm.logpdf(a, 0.5, 1.0) + stats.norm.logpdf(b, a, 0.8)
    np.testing.assert_allclose(correction, -0.5 * log_p, rtol=1e-5)
    np.testing.assert_allclose(particles.history.log_prob[:, 0], 0.5 * log_p, rtol=1e-5)
    np.testing.assert_allclose(log_g, 0.5 * stats.norm.logpdf(0.3, b, 1.2), rtol=1e-5)


def test_scale_of_a_latent_site_has_the_evidence_of_quadrature():
    # N(x; m, s^2)^(3/2) is (2 pi s^2)^(-1/4) sqrt(2/3) times N(x; m, 2 s^2 / 3).
    def program(t, x, params):
        with handlers.scale(scale=1.5):
            x = numpyro.sample("x", dist.Normal(0.5, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.2), obs=0.3)
        return x

    truth = (2 * np.pi) ** -0.25 * np.sqrt(2 / 3) * normal(0.3, 0.5, 2 / 3 + 1.44)
    assert abs(z_score(evidence(program), truth)) < 4


def test_mask_takes_a_site_out_of_both_densities():
    program = handlers.mask(pair, mask=False)
    particles, correction, log_g = one_step(program)
    np.testing.assert_array_equal(correction, 0.0)
    np.testing.assert_array_equal(log_g, 0.0)
    np.testing.assert_array_equal(particles.history.log_prob, 0.0)


def test_factors_weigh():
    def program(t, x, params):
        x = numpyro.sample("x", dist.Bernoulli(0.3))
        numpyro.factor("f", jnp.where(x == 1, 0.7, -0.2))
        return x.astype(jnp.float32)

    truth = 0.3 * np.exp(0.7) + 0.7 * np.exp(-0.2)
    assert abs(z_score(evidence(program), truth)) < 4


DATA = jnp.array([[0.3, -0.5, 1.0], [0.2, 0.1, -0.4]])


def plated(t, x, params):
    """Vector sites, plates around latent and observed sites, an event dimension."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("columns", 3):
        shift = numpyro.sample("shift", dist.Normal(mean, 0.5))
        with numpyro.plate("rows", 2):
            numpyro.sample("y", dist.Normal(shift, 1.5), obs=DATA)
    return jnp.sum(shift)


@pytest.mark.long
def test_plates_and_vector_sites():
    particles, _, log_g = one_step(plated)
    latents = particles.history.latents
    assert latents["mean"].shape == latents["shift"].shape == (4, 1, 3)
    shift, mean = latents["shift"][:, 0], latents["mean"][:, 0]
    expected = stats.norm.logpdf(DATA, np.asarray(shift)[:, None], 1.5).sum((1, 2))
    np.testing.assert_allclose(log_g, expected, rtol=1e-5)
    log_p = stats.norm.logpdf(mean) + stats.norm.logpdf(shift, mean, 0.5)
    np.testing.assert_allclose(
        particles.history.log_prob[:, 0], log_p.sum(1), rtol=1e-5
    )
    covariance = 1.25 + 2.25 * np.eye(2)
    columns = stats.multivariate_normal(cov=covariance).pdf(np.asarray(DATA).T)
    assert abs(z_score(evidence(plated), columns.prod())) < 4


def scanned(t, x, params):
    """A numpyro scan inside a step: three latent values under one name."""

    def inner(x, y):
        x = numpyro.sample("x", dist.Normal(0.8 * x, 0.6))
        numpyro.sample("y", dist.Normal(x, 0.9), obs=y)
        return x, None

    return scan(inner, x, jnp.array([0.4, 1.1, -0.3]))[0]


def scanned_proposal(t, x, params):
    scan(
        lambda x, _: (numpyro.sample("x", dist.Normal(0.7 * x + 0.1, 0.8)), None),
        x,
        jnp.zeros(3),
    )


@pytest.mark.long
@pytest.mark.parametrize("proposal", [None, scanned_proposal])
def test_numpyros_scan_inside_a_step(proposal):
    operator = np.linalg.inv(np.eye(3) - 0.8 * np.eye(3, k=-1))
    covariance = operator @ operator.T * 0.36 + 0.81 * np.eye(3)
    truth = stats.multivariate_normal(cov=covariance).pdf([0.4, 1.1, -0.3])
    assert abs(z_score(evidence(scanned, proposal=proposal), truth)) < 4


def test_condition_reaches_into_a_scan_and_substitute_is_refused():
    values = jnp.array([0.1, 0.2, 0.3])
    _, _, log_g = one_step(handlers.condition(scanned, data={"x": values}))
    means = 0.8 * np.array([0.0, 0.1, 0.2])
    expected = stats.norm.logpdf(values, means, 0.6)
    expected = expected + stats.norm.logpdf([0.4, 1.1, -0.3], values, 0.9)
    np.testing.assert_allclose(log_g, expected.sum(), rtol=1e-5)
    with pytest.raises(ConfigurationError, match=r"handlers\.condition"):
        one_step(handlers.substitute(scanned, data={"x": values}))


def test_numpyros_cond_inside_a_step():
    def branch(mean):
        return lambda _: numpyro.sample("x", dist.Normal(mean, 1.0))

    def program(t, x, params):
        heads = numpyro.sample("heads", dist.Bernoulli(0.4))
        x = cond(heads == 1, branch(1.0), branch(-1.0), None)
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.5)
        return x

    truth = 0.4 * normal(0.5, 1.0, 2.0) + 0.6 * normal(0.5, -1.0, 2.0)
    assert abs(z_score(evidence(program), truth)) < 4


def test_do_cuts_a_site_off_from_what_follows():
    particles, _, _ = one_step(handlers.do(pair, data={"b": 0.7}))
    np.testing.assert_array_equal(particles.carry, np.float32(0.7))
    assert set(particles.history.latents) == {"a", "b"}
    assert len(np.unique(particles.history.latents["b"])) == 4


def test_handlers_around_a_run_do_not_reach_into_it():
    target = program_target(start, pair, max_steps=1)
    alone = tsi.run(PLAIN, target, KEY, 4)
    with (
        handlers.trace() as trace,
        handlers.seed(rng_seed=1),
        handlers.condition(data={"a": 3.0}),
    ):
        inside = tsi.run(PLAIN, target, KEY, 4)
    assert not trace
    np.testing.assert_array_equal(alone.particles.carry, inside.particles.carry)


def test_part_of_the_sites_may_be_proposed():
    def proposal(t, x, params):
        numpyro.sample("b", dist.Normal(0.4, 1.5))

    particles, correction, _ = one_step(pair, proposal=proposal)
    a, b = (particles.history.latents[n][:, 0] for n in "ab")
    expected = stats.norm.logpdf(b, a, 0.8) - stats.norm.logpdf(b, 0.4, 1.5)
    np.testing.assert_allclose(correction, expected, rtol=1e-4)
    assert abs(z_score(evidence(pair, proposal=proposal), normal(0.3, 0.5, 3.08))) < 4


def test_a_proposal_of_a_conditioned_or_fixed_site_is_refused():
    def proposal(t, x, params):
        numpyro.sample("b", dist.Normal(0.4, 1.5))

    for handler in (handlers.condition, handlers.substitute):
        with pytest.raises(ConfigurationError, match="'b'"):
            one_step(handler(pair, data={"b": 0.7}), proposal=proposal)
    fixed = handlers.substitute(proposal, data={"b": 0.7})
    with pytest.raises(ConfigurationError, match="only"):
        one_step(pair, proposal=fixed)
