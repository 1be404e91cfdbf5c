"""An event of probability far below 2^-23 is not decided by 23 random bits.

`jax.random.uniform` is zero with probability 2^-23. `unlucky` makes it zero always: a
decision that compares it with a probability then takes place however improbable it is,
and one that draws its own bits does not.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from long_runs import jit_optimised
from numpyro.infer import MCMC
from scipy import stats

import tsi
from tsi import samplers
from tsi.log_uniform import LARGEST, log_uniform
from tsi.numpyro import PMMH
from tsi.samplers.parts.potentials import telescoping
from tsi.samplers.parts.temperature_ladder import swap
from tsi.samplers.pruning import russian_roulette
from tsi.targets.tabular import TabularTarget

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 32)
GAP = 60.0
"""e^-60 is 1e-26, and 2^-23 is 1e-7."""


@pytest.fixture
def unlucky(monkeypatch):
    def zeros(key, shape=(), dtype=jnp.float32, **_):
        return jnp.zeros(shape, dtype)

    monkeypatch.setattr(jax.random, "uniform", zeros)


def good_or_hopeless():
    """One step: symbol 0 at zero, and symbol 1 at 60 below."""
    return TabularTarget([0.5, 0.5], [[0.5, 0.5]] * 2, [[0.0, -GAP]])


def test_rare_events_are_as_rare_as_they_should_be():
    shape, batches = (2**21,), 16
    bounds = jnp.asarray([-1.0, -18.0, -22.4, -30.0, -40.0])

    def count(key):
        drawn = log_uniform(key, shape)
        return jnp.stack([jnp.sum(drawn < b) for b in bounds * jnp.log(2.0)])

    counts = jit_optimised(lambda keys: jax.lax.map(count, keys))(
        jax.random.split(KEY, batches)
    )
    counts = np.asarray(counts, np.int64).sum(0)
    probabilities = 2.0 ** np.asarray(bounds, np.float64)
    for found, p in zip(counts, probabilities, strict=True):
        assert stats.binomtest(int(found), shape[0] * batches, p).pvalue > 1e-3


def test_a_number_has_the_bits_of_two_words_and_is_below_one(monkeypatch):
    top = 2**32 - 1
    words = np.array([[0, 0, 0, 511, 2**31, top], [0, 2**31, top, 3, 0, top]])
    monkeypatch.setattr(
        jax.random, "bits", lambda key, shape, dtype: jnp.asarray(words, dtype)
    )
    high, low = words.astype(object)
    exact = [np.log(float(n) + 0.5) for n in high * 2**32 + low]
    exact = np.minimum(np.array(exact) - 64.0 * np.log(2.0), LARGEST)
    found = log_uniform(KEY, (6,))
    np.testing.assert_allclose(found, exact, rtol=3e-7)
    assert float(found[-1]) == LARGEST
    assert found.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(), (1,), (5, 1000)])
def test_a_number_is_the_uniform_of_its_key_with_further_bits(shape):
    gap = np.exp(np.asarray(log_uniform(KEY, shape), np.float64))
    gap -= np.asarray(jax.random.uniform(KEY, shape), np.float64)
    assert gap.min() > -(2.0**-24)
    assert gap.max() < 1.5 * 2.0**-23


def test_roulette_does_not_lift_a_particle_that_hardly_weighs(unlucky):
    log_weights = jnp.asarray([0.0, -GAP, -2.0 * GAP, -jnp.inf])
    played = russian_roulette(KEY, log_weights, jnp.zeros(4, bool), 0.5)
    np.testing.assert_array_equal(played, [0.0, -np.inf, -np.inf, -np.inf])


def test_chains_do_not_swap_against_all_odds(unlucky):
    log_temperatures = jnp.log(jnp.asarray([1.0, 4.0, 16.0]))
    scores = jnp.asarray([0.0, -GAP, -6.0 * GAP])
    for turn in (0, 1):
        origins, _ = swap(KEY, scores, log_temperatures, jnp.int32(turn))
        np.testing.assert_array_equal(origins, [0, 1, 2])


CHAINS = {
    "suffix_metropolis": (samplers.suffix_metropolis(telescoping()), 16),
    "pimh": (samplers.pimh(potential=telescoping(), num_iterations=16), 16),
    "tempered_smc": (
        samplers.tempered_smc(telescoping(), exponents=(0.9, 1.0), num_moves=4),
        36,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_does_not_move_where_hardly_any_density_is(name, unlucky):
    chain, size = CHAINS[name]
    target = good_or_hopeless()
    runs = jax.vmap(lambda key: tsi.run(chain, target, key, size))(KEYS)
    hopeless = np.asarray(runs.particles.symbols)[..., 0] == 1
    if name == "tempered_smc":
        assert not hopeless.any()
        return
    assert hopeless[:, 0].any()
    # Once a state is good, all states after it are.
    assert not (np.diff(hopeless.astype(int), axis=1) == 1).any()


def test_a_chain_over_parameters_keeps_the_greater_evidence(unlucky):
    kernel = PMMH(
        samplers.smc(potential=telescoping()), good_or_hopeless(), num_particles=1
    )
    run = MCMC(kernel, num_warmup=0, num_samples=64, progress_bar=False)
    run.run(KEY, None, extra_fields=("log_evidence",))
    evidence = np.asarray(run.get_extra_fields()["log_evidence"])
    assert evidence[-1] > -1.0
    assert not (np.diff(evidence) < 0.0).any()
