"""Log-weight arithmetic: the textbook numbers, and never NaN."""

import jax.numpy as jnp
import numpy as np
import pytest

from tsi import weights
from tsi.ess import ess

DEAD = jnp.full(4, -jnp.inf)
MIXED = jnp.log(jnp.array([0.5, 0.0, 1.5, 2.0]))


def test_normalised_weights_sum_to_one_and_keep_ratios():
    w = np.exp(np.asarray(weights.normalise(MIXED)))
    np.testing.assert_allclose(w, np.array([0.5, 0.0, 1.5, 2.0]) / 4.0, rtol=1e-6)


def test_normalise_survives_huge_and_tiny_log_weights():
    for shift in (-1e4, 1e4):
        w = np.exp(np.asarray(weights.normalise(MIXED + shift)))
        np.testing.assert_allclose(w.sum(), 1.0, rtol=1e-3)


def test_log_mean_exp_is_the_log_of_the_mean_weight():
    np.testing.assert_allclose(weights.log_mean_exp(MIXED), np.log(1.0), atol=1e-6)
    np.testing.assert_allclose(weights.log_sum_exp(MIXED), np.log(4.0), rtol=1e-6)


@pytest.mark.parametrize("log_weights", [DEAD, jnp.full(4, jnp.nan)])
def test_all_zero_weights_are_detected_and_recover_equal(log_weights):
    assert bool(weights.all_dead(log_weights))
    np.testing.assert_allclose(
        np.exp(np.asarray(weights.normalise(log_weights))), 0.25, rtol=1e-6
    )
    assert float(ess(log_weights)) == 0.0
    assert float(weights.log_mean_exp(log_weights)) == -np.inf


def test_a_nan_weight_counts_as_zero():
    with_nan = MIXED.at[1].set(jnp.nan)
    np.testing.assert_array_equal(weights.normalise(with_nan), weights.normalise(MIXED))
    np.testing.assert_array_equal(ess(with_nan), ess(MIXED))
    assert not bool(weights.all_dead(with_nan))


def test_ess_is_n_for_equal_weights_and_one_for_a_single_one():
    np.testing.assert_allclose(ess(jnp.full(16, -700.0)), 16.0, rtol=1e-5)
    np.testing.assert_allclose(ess(DEAD.at[2].set(300.0)), 1.0, rtol=1e-5)
    w = np.array([0.5, 0.0, 1.5, 2.0])
    expected = w.sum() ** 2 / (w**2).sum()
    np.testing.assert_allclose(ess(MIXED), expected, rtol=1e-5)


def test_evidence_increment_is_the_weighted_mean_of_the_increments():
    increments = jnp.log(jnp.array([1.0, 7.0, 2.0, 3.0]))
    expected = (0.5 * 1 + 1.5 * 2 + 2.0 * 3) / 4.0
    np.testing.assert_allclose(
        weights.evidence_increment(MIXED, increments), np.log(expected), rtol=1e-6
    )


def test_a_dead_particle_adds_nothing_to_the_increment_whatever_it_is_told():
    for value in (jnp.inf, jnp.nan, -jnp.inf):
        increments = jnp.zeros(4).at[1].set(value)
        np.testing.assert_allclose(
            weights.evidence_increment(MIXED, increments), 0.0, atol=1e-6
        )
    assert float(weights.evidence_increment(MIXED, DEAD)) == -np.inf


def test_groups_are_the_leading_axes():
    both = jnp.stack([MIXED, DEAD])
    np.testing.assert_array_equal(weights.all_dead(both), [False, True])
    assert ess(both).shape == (2,)
    assert not np.isnan(np.asarray(weights.normalise(both))).any()
