"""A program with arguments, and numpyro's kernels of it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC
from numpyro_programs import OBSERVED

from tsi import samplers
from tsi.numpyro import PMMH, ExplorerKernel, ModelArguments, program_target
from tsi.samplers.parts.potentials import product

KEY = jax.random.key(0)
METROPOLIS = samplers.suffix_metropolis(product(), endless=True)
SMC = samplers.smc(potential=product())


def start(y, scale=0.6):
    numpyro.deterministic("first", y[0])
    return jnp.zeros(())


def step(t, x, y, scale=0.6):
    x = numpyro.sample("x", dist.Normal(0.8 * x, scale))
    numpyro.deterministic("square", x**2)
    numpyro.sample("y", dist.Normal(x, 0.9), obs=y[t])
    return x


TARGET = program_target(start, step, max_steps=4)


def prior(y):
    return ModelArguments((y,), {"scale": numpyro.sample("s", dist.HalfNormal(1.0))})


def explorer_kernel():
    return ExplorerKernel(METROPOLIS, TARGET)


def pmmh_kernel():
    return PMMH(SMC, TARGET, prior, num_particles=4)


KERNELS = {"explorer": explorer_kernel, "pmmh": pmmh_kernel}
both = pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)


def mcmc(kernel, chains=1, samples=8, **changes):
    settings = {"num_warmup": 4, "chain_method": "vectorized", "progress_bar": False}
    return MCMC(kernel, num_samples=samples, num_chains=chains, **(settings | changes))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def drawn_start(params):
    x = numpyro.sample("x", dist.Normal())
    numpyro.deterministic("square", x**2)
    numpyro.sample("y", dist.Normal(x, 1.0), obs=0.3)
    return x


def short_step(t, x, params):
    rate = numpyro.sample("rate", dist.Gamma(2.0 + x**2, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=OBSERVED[t])
    return numpyro.deterministic("x", x + rate)


SHORT = program_target(
    drawn_start, short_step, max_steps=4, end=lambda t, x, params: x > 3.0
)
