"""The variance computed from one genealogy against the variance over many runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi import samplers
from tsi.accuracy.evidence_variance import genealogy, relative_variance
from tsi.run import run
from tsi.samplers.parts.schedules import ess_below
from tsi.targets.examples import impossible_prefixes, peaked, smooth, unequal_lengths

NUM_RUNS = 20_000


def variance_and_estimates(target, sampler, size=8):
    """Empirical variance of Z_hat with its error, and the mean estimate with its."""

    def once(key):
        found = run(sampler, target, key, size)
        infos = found.infos
        relative = relative_variance(
            found.state.log_weights, infos.ancestors, infos.resampled, found.num_steps
        )
        return jnp.exp(found.state.log_evidence), relative

    keys = jax.random.split(jax.random.key(3), NUM_RUNS)
    evidence, relative = (
        np.asarray(x, np.float64) for x in jax.jit(jax.vmap(once))(keys)
    )
    relative = np.where(evidence > 0, relative, 0.0)
    squares = (evidence - evidence.mean()) ** 2
    return squares, evidence**2 * relative


@pytest.mark.long
@pytest.mark.parametrize(
    "target", [smooth(), peaked(), impossible_prefixes(), unequal_lengths()]
)
def test_multinomial_particle_filters_know_their_variance(target):
    squares, estimates = variance_and_estimates(target, samplers.particle_filter())
    error = np.std(estimates - squares) / NUM_RUNS**0.5
    assert abs(estimates.mean() - squares.mean()) < 4 * error
    # The test would notice one stage too many or too few.
    assert error < 0.05 * squares.mean()


def test_without_resampling_it_is_the_variance_of_independent_weights():
    target, sampler = peaked(), samplers.weighted_best_of_n("odds")
    squares, estimates = variance_and_estimates(target, sampler)
    error = np.std(estimates - squares) / NUM_RUNS**0.5
    assert abs(estimates.mean() - squares.mean()) < 4 * error


@pytest.mark.long
def test_resampling_at_some_steps_only_is_close():
    """Adaptive resampling is covered for large N; at N = 32 within a tenth."""
    sampler = samplers.smc(resampling=samplers.multinomial, schedule=ess_below(0.7))
    squares, estimates = variance_and_estimates(peaked(), sampler, size=32)
    assert estimates.mean() == pytest.approx(squares.mean(), rel=0.1)


def test_genealogy_follows_parents_and_stops_at_the_last_step():
    ancestors = jnp.array([[0, 1, 2, 3], [1, 1, 2, 3], [2, 0, 2, 1], [0, 0, 0, 0]])
    found = genealogy(ancestors, 3)
    np.testing.assert_array_equal(found.eves, [2, 1, 2, 1])
    np.testing.assert_array_equal(found.unique_eves, [4, 3, 2, 2])


def test_one_particle_cannot_know():
    one = jnp.zeros(1)
    assert np.isnan(relative_variance(one, jnp.zeros((2, 1), int), jnp.zeros(2, bool)))
