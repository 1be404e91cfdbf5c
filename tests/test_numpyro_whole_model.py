"""The model of a whole program: densities, predictions, priors and handlers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from numpyro_kernels import (
    KERNELS,
    KEY,
    METROPOLIS,
    SHORT,
    SMC,
    TARGET,
    explorer_kernel,
    mcmc,
    pmmh_kernel,
    start,
    step,
)
from numpyro_programs import GAUSSIAN, OBSERVED, gaussian

import tsi
from tsi import samplers
from tsi.errors import ConfigurationError
from tsi.numpyro import PMMH, ExplorerKernel, program_target
from tsi.targets.examples import unequal_lengths
from tsi.twists.twisted_target import TwistedTarget


@pytest.mark.parametrize("name", ["plain", "drawn start, end"])
def test_the_whole_model_has_the_densities_of_paths(name):
    target, params = {"plain": (TARGET, OBSERVED), "drawn start, end": (SHORT, None)}[
        name
    ]
    particles = tsi.run(SMC, target, KEY, 16, params).particles
    sites = target.sites(particles, params)
    assert len(set(np.asarray(particles.length))) > 1 or name == "plain"
    known = jax.vmap(lambda v: log_density(target.model, (params,), {}, v)[0])(sites)
    taken = np.arange(4) < np.asarray(particles.length)[:, None]
    log_g = np.where(taken, particles.history.log_potential, 0.0).sum(1)
    log_p = np.asarray(target.log_prob(particles, params))
    np.testing.assert_allclose(known, log_p + log_g, rtol=1e-4)


@pytest.mark.long
def test_the_whole_model_predicts():
    run = mcmc(explorer_kernel(), samples=40)
    run.run(KEY, y=OBSERVED)
    samples = run.get_samples()
    model = run.sampler.model
    given = Predictive(model, samples)(KEY, y=OBSERVED)
    np.testing.assert_array_equal(given["y"], np.tile(OBSERVED, (40, 1)))
    np.testing.assert_allclose(given["square"], samples["square"], rtol=1e-5)
    drawn = Predictive(TARGET.unconditioned_model, samples)(KEY, y=OBSERVED)["y"]
    assert drawn.shape == (40, 4)
    # Of its own path's states, and with the program's noise.
    errors = np.asarray(drawn - samples["x"])
    assert 0.7 < errors.std() < 1.1
    before = Predictive(TARGET.unconditioned_model, num_samples=3)(KEY, OBSERVED)
    assert before["x"].shape == (3, 4)


def test_the_whole_model_of_pmmh_has_its_prior():
    run = mcmc(pmmh_kernel())
    run.run(KEY, OBSERVED)
    samples = run.get_samples()
    given = Predictive(run.sampler.unconditioned_model, samples)(KEY, OBSERVED)
    assert given["y"].shape == (8, 4)
    values = {name: samples[name][0] for name in ("s", "x")}
    found, _ = log_density(run.sampler.model, (OBSERVED,), {}, values)
    plain, _ = log_density(TARGET.model, (OBSERVED, values["s"]), {}, values)
    log_p = dist.HalfNormal(1.0).log_prob(values["s"])
    np.testing.assert_allclose(found, plain + log_p, rtol=1e-5)
    assert PMMH(SMC, unequal_lengths()).model is None
    assert ExplorerKernel(METROPOLIS, unequal_lengths()).model is None


def nested(t, x, params):
    _, xs = scan(
        lambda c, _: (numpyro.sample("z", dist.Normal(c, 1.0)),) * 2, x, jnp.arange(3)
    )
    return xs[-1]


def test_a_scan_within_a_step_can_be_drawn_from_but_not_scored():
    target = program_target(lambda params: jnp.zeros(()), nested, max_steps=2)
    drawn = Predictive(target.model, num_samples=2)(KEY, None)
    assert drawn["z"].shape == (2, 2, 3)
    with pytest.raises(ConfigurationError, match="vector site"):
        log_density(target.model, (None,), {}, {"z": drawn["z"][0]})


def test_handlers_around_a_program_act_in_the_whole_model():
    tied = handlers.condition(step, data={"x": jnp.zeros(())})
    target = program_target(start, tied, max_steps=4)
    trace = handlers.trace(handlers.seed(target.model, KEY)).get_trace(OBSERVED)
    assert trace["x"]["is_observed"]
    np.testing.assert_array_equal(trace["x"]["value"], np.zeros(4))


def test_arviz_takes_the_mcmc_of_either_kernel():
    base = pytest.importorskip("arviz_base")
    for make in KERNELS.values():
        run = mcmc(make(), chains=2)
        run.run(KEY, OBSERVED)
        tree = base.from_numpyro(run)
        assert tree["posterior"]["x"].shape == (2, 8, 4)
        np.testing.assert_array_equal(tree["observed_data"]["y"], OBSERVED)


def test_several_arguments_are_refused_where_there_are_no_programs():
    twisted = TwistedTarget(gaussian(), lambda t, particles, params: jnp.zeros(()))
    chain = samplers.suffix_metropolis(samplers.telescoping(), endless=True)
    with pytest.raises(ConfigurationError, match="TwistedTarget takes one argument"):
        ExplorerKernel(chain, twisted).init(KEY, 0, None, (1, 2), {})
    assert GAUSSIAN.max_steps == twisted.max_steps
