"""Kernels, runs and samplers of numpyro users pickle."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from every_sampler import all_samplers
from numpyro_kernels import (
    KEY,
    SMC,
    explorer_kernel,
    mcmc,
    pmmh_kernel,
    same,
)
from numpyro_programs import OBSERVED

from tsi import samplers
from tsi.errors import UnknownNameError
from tsi.picklable import picklable
from tsi.samplers.parts.potentials import product


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "chains"),
    [
        pytest.param(explorer_kernel, 1, marks=pytest.mark.slow),
        (explorer_kernel, 2),
        pytest.param(pmmh_kernel, 2, marks=pytest.mark.slow),
    ],
)
def test_a_kernel_and_its_mcmc_pickle_before_and_after_a_run(make, chains):
    whole = mcmc(pickle.loads(pickle.dumps(make())), chains)
    fresh = pickle.loads(pickle.dumps(mcmc(make(), chains)))
    for run in (whole, fresh):
        run.run(KEY, OBSERVED)
    same(whole.get_samples(), fresh.get_samples())
    copy = pickle.loads(pickle.dumps(fresh))
    same(copy.get_samples(), whole.get_samples())
    for run in (whole, copy):
        run.post_warmup_state = run.last_state
        run.run(run.last_state.rng_key, OBSERVED)
    same(copy.get_samples(), whole.get_samples())
    assert not np.array_equal(copy.get_samples()["x"], fresh.get_samples()["x"])
    state = pickle.loads(pickle.dumps(copy.last_state))
    with pytest.raises(UnknownNameError, match="nothing"):
        state["nothing"]


POTENTIALS = (
    product(),
    samplers.telescoping("softmax"),
    samplers.terminal(),
    samplers.latest(),
    samplers.uniform(),
)


def test_every_sampler_and_what_it_is_made_of_pickles():
    made = dict(all_samplers())
    assert len(made) >= 25
    for name, sampler in made.items():
        copy = pickle.loads(pickle.dumps(sampler))
        assert copy.recipe.constructor is getattr(samplers, name)
        assert copy.init is not sampler.init
        assert pickle.dumps(copy) == pickle.dumps(sampler)
    rule = samplers.by_priority(samplers.systematic)
    for value in (*POTENTIALS, rule, samplers.ess_below(0.3), samplers.uct()):
        pickle.loads(pickle.dumps(value))


def test_a_sampler_that_was_changed_does_not_pickle_as_what_it_was():
    changed = SMC._replace(select="argmax", path_log_weight=None)
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(changed)
    assert pickle.loads(pickle.dumps(SMC)).select == "posterior"


@picklable
def own_sampler(fraction=0.5):
    return samplers.smc(schedule=samplers.ess_below(fraction), potential=product())


def test_an_own_constructor_pickles_once_it_is_said_to():
    copy = pickle.loads(pickle.dumps(own_sampler(fraction=0.25)))
    assert copy.recipe.kwargs == {"fraction": 0.25}
    assert copy.path_log_weight(jnp.ones((1, 3)), jnp.ones((1, 3), bool)) == 3.0
