"""Pareto k against samples of known tails and against ArviZ."""

import math

import numpy as np
import pytest
from scipy.stats import genpareto

from tsi.accuracy.pareto import generalized_pareto_k, pareto_k


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.7, 1.2])
def test_the_shape_of_generalized_pareto_samples_is_found(k):
    """Mean of 200 fits to 200 samples, without the pull towards 0.5."""
    draws = genpareto.rvs(k, size=(200, 200), random_state=0)
    found = np.array([generalized_pareto_k(np.sort(3.0 * row)) for row in draws])
    unpulled = (210 * found - 5) / 200
    # Zhang and Stephens report biases of a few hundredths at this size.
    assert abs(unpulled.mean() - k) < 0.03
    spread = (1 + k) / 200**0.5
    assert 0.7 * spread < unpulled.std() < 1.4 * spread


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_tail_of_weights_is_found_whatever_their_scale(k):
    log_weights = np.log(genpareto.rvs(k, loc=1, size=20_000, random_state=1))
    found = pareto_k(log_weights)
    assert abs(found - k) < 4 * (1 + k) / 424**0.5
    assert pareto_k(log_weights - 500) == pytest.approx(found)


def test_few_particles_and_ties_have_no_tail():
    rng = np.random.default_rng(2)
    assert math.isnan(pareto_k(rng.normal(size=24)))
    assert math.isfinite(pareto_k(rng.normal(size=25)))
    assert math.isnan(pareto_k(np.zeros(100)))
    assert math.isnan(pareto_k(np.full(100, -np.inf)))
    one_heavy = np.zeros(100)
    one_heavy[:4] = 5.0
    assert math.isnan(pareto_k(one_heavy))


def test_zero_weights_are_weights():
    log_weights = np.random.default_rng(3).normal(size=50)
    log_weights[:20] = -np.inf
    assert math.isfinite(pareto_k(log_weights))
    log_weights[:46] = -np.inf
    assert math.isnan(pareto_k(log_weights))


# ArviZ 1.3 asks for six weights in the tail: 30 particles.
@pytest.mark.parametrize("size", [30, 100, 225, 1000])
def test_arviz_agrees(size):
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    for seed, spread in enumerate((0.5, 1.0, 3.0)):
        log_weights = spread * np.random.default_rng(seed).normal(size=size)
        # It takes log likelihoods, whose negatives are log weights.
        _, theirs = array_stats.psislw(-log_weights)
        assert pareto_k(log_weights) == pytest.approx(float(theirs), rel=1e-6)
