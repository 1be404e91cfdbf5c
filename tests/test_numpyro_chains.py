"""Every chain of the package under numpyro's MCMC: its samples have the posterior."""

import jax
import numpy as np
import pytest
from numpyro.infer import MCMC

from tsi import samplers
from tsi.errors import ConfigurationError
from tsi.numpyro import ExplorerKernel
from tsi.samplers.parts.potentials import product
from tsi.targets.examples import unequal_lengths

CHAINS = {
    "suffix_metropolis": samplers.suffix_metropolis(product(), endless=True),
    "particle_gibbs": samplers.particle_gibbs(endless=True),
    "ancestor_sampling": samplers.particle_gibbs(ancestor_sampling=True, endless=True),
    "backward_sampling": samplers.particle_gibbs(backward_sampling=True, endless=True),
    "pimh": samplers.pimh(endless=True),
    "parallel_tempering": samplers.parallel_tempering(num_temperatures=2, endless=True),
}


QUICK = ("particle_gibbs", "parallel_tempering")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in CHAINS
    ],
)
def test_the_chains_present_state_has_the_posterior(name):
    target, kernel_chains, num_samples = unequal_lengths(), 100, 150
    kernel = ExplorerKernel(
        CHAINS[name],
        target,
        num_particles=1 if name == "suffix_metropolis" else 8,
        collect=lambda particles: {"symbols": particles.symbols},
    )
    run = MCMC(
        kernel,
        num_warmup=30,
        num_samples=num_samples,
        num_chains=kernel_chains,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )
    run.run(jax.random.key(0), target.params)
    samples = run.get_samples(group_by_chain=True)
    truth = target.truth(product().path_log_weight)
    codes = target.path_codes(truth.symbols)
    found = target.path_codes(np.asarray(samples["symbols"]))
    # Chains are independent, so the spread of their means is the error of the mean.
    likely = np.argsort(-truth.posterior)[:8]
    means = np.stack([(found == codes[path]).mean(1) for path in likely])
    error = means.std(1, ddof=1) / np.sqrt(kernel_chains)
    z = (means.mean(1) - truth.posterior[likely]) / error
    assert np.abs(z).max() < 4
    assert (error < 0.1 * truth.posterior[likely]).all()
    # The numbers collected are those of the same path.
    lengths = (np.asarray(samples["symbols"]) >= 0).sum(-1)
    np.testing.assert_array_equal(samples["length"], lengths)


def test_an_explorer_that_ends_is_refused():
    with pytest.raises(ConfigurationError, match="endless=True"):
        ExplorerKernel(samplers.particle_gibbs(), unequal_lengths(), num_particles=8)
