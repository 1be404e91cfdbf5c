"""Optimal resampling, and steering by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.samplers.parts.optimal_resampling import (
    inclusion_probabilities,
    optimal_resampling,
)
from tsi.samplers.parts.reproduction import Group
from tsi.targets.examples import unequal_lengths

KEY = jax.random.key(0)

WEIGHTS = {
    "spread": [0.05, 3.0, 0.7, 0.2, 1.1, 0.4, 0.1],
    "one that takes all": [1e-4, 1e4, 1e-3, 1e-4, 2e-4, 1e-4, 3e-4],
    "ties": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "zeros": [0.0, 3.0, 0.0, 1.0, 2.0, 0.5, 0.0],
}


def threshold_by_search(weights, num_kept):
    """min(1, c w) with c found by bisection."""
    low, high = 0.0, 1e12
    for _ in range(200):
        middle = 0.5 * (low + high)
        too_many = np.minimum(1.0, middle * weights).sum() > num_kept
        low, high = (low, middle) if too_many else (middle, high)
    return np.minimum(1.0, low * weights)


probabilities_of = jax.jit(inclusion_probabilities, static_argnums=1)
draw_many = jax.jit(
    jax.vmap(optimal_resampling, in_axes=(0, None, None)), static_argnums=2
)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("num_kept", [1, 3])
def test_optimal_resampling_keeps_each_as_often_as_it_says(name, num_kept):
    weights = np.array(WEIGHTS[name])
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray(np.log(weights), jnp.float32)
    probabilities = np.asarray(probabilities_of(log_weights, num_kept))
    expected = threshold_by_search(weights, num_kept)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-7)

    draws = 200_000
    keys = jax.random.split(jax.random.key(num_kept), draws)
    kept, new = draw_many(keys, log_weights, num_kept)
    kept, new = np.asarray(kept), np.exp(np.asarray(new, np.float64))
    assert (kept.sum(1) == num_kept).all()
    assert (new[~kept] == 0.0).all()
    np.testing.assert_allclose(new.sum(1), weights.sum(), rtol=1e-4)
    frequency = kept.mean(0)
    error = np.sqrt(np.maximum(expected * (1.0 - expected), 1e-12) / draws)
    assert (np.abs(frequency - expected) < 4.5 * error + 1e-6).all()
    # A kept weight is the weight itself or the threshold.
    scale = np.where(expected > 0.0, weights / np.where(expected > 0, expected, 1), 0)
    np.testing.assert_allclose(new, kept * scale, rtol=1e-5)


def test_fewer_weights_than_places_are_all_kept_as_they_are():
    log_weights = jnp.array([-jnp.inf, 1.0, -jnp.inf, -2.0, jnp.nan])
    draw = jax.jit(optimal_resampling, static_argnums=2)
    for num_kept in (2, 3, 5, 9):
        kept, new = draw(KEY, log_weights, num_kept)
        np.testing.assert_array_equal(kept, [False, True, False, True, False])
        np.testing.assert_allclose(new, [-np.inf, 1.0, -np.inf, -2.0, -np.inf])
    kept, _ = draw(KEY, jnp.full(4, -jnp.inf), 2)
    assert not kept.any()


def test_many_places_are_filled_exactly():
    # More than the 32 bits of a sum could hold without wrapping.
    log_weights = 2.0 * jax.random.normal(KEY, (3000,))
    keys = jax.random.split(KEY, 50)
    kept, _ = draw_many(keys, log_weights, 1500)
    assert (np.abs(np.asarray(kept).sum(1) - 1500) <= 1).all()
    sure = np.asarray(probabilities_of(log_weights, 1500)) == 1.0
    assert np.asarray(kept)[:, sure].all()


def test_kept_prefixes_are_expanded_and_finished_ones_keep_one_place():
    rule = samplers.expansion(3)
    log_weights = jnp.log(jnp.array([5.0, 1e-9, 4.0, 1e-9, 3.0, 1e-9]))
    finished = jnp.array([False, False, True, False, False, False])
    group = Group(log_weights, log_weights, finished, jnp.int32(1))
    seen, draw = set(), jax.jit(rule.draw)
    for seed in range(20):
        offspring = draw(jax.random.key(seed), group)
        first, second = (int(i) for i in offspring.ancestors[::3])
        np.testing.assert_array_equal(offspring.ancestors, [first] * 3 + [second] * 3)
        assert first != second
        weights = np.exp(np.asarray(offspring.log_weights)).reshape(2, 3)
        np.testing.assert_allclose(weights.sum(), 12.0, rtol=1e-4)
        for parent, row in zip((first, second), weights, strict=True):
            if bool(finished[parent]):
                assert (row[1:] == 0.0).all()
            else:
                np.testing.assert_allclose(row, row.mean(), rtol=1e-5)
        seen.add((first, second))
    assert len(seen) > 1


def test_a_single_prefix_with_weight_is_given_all_places():
    log_weights = jnp.array([-jnp.inf, -jnp.inf, 2.0, -jnp.inf])
    for finished, expected in ((False, [0.5, 0.5, 0.5, 0.5]), (True, [2, 0, 0, 0])):
        group = Group(log_weights, log_weights, jnp.full(4, finished), jnp.int32(1))
        offspring = samplers.expansion(2).draw(KEY, group)
        np.testing.assert_array_equal(offspring.ancestors, [2, 2, 2, 2])
        got = np.exp(np.asarray(offspring.log_weights) - 2.0) * 2.0
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("size", "width"), [(1, 4), (4, 1), (3, 8), (6, 3)])
def test_steering_at_the_edges_of_its_width(size, width):
    target = unequal_lengths()
    sampler = samplers.smc_steering(width)
    many = jax.jit(jax.vmap(lambda key: tsi.run(sampler, target, key, size)))
    state = many(jax.random.split(KEY, 20_000)).state
    evidence = np.exp(np.asarray(state.log_evidence, np.float64))
    truth = np.exp(target.truth(sampler.path_log_weight).log_evidence)
    error = evidence.std() / np.sqrt(len(evidence))
    assert abs(evidence.mean() - truth) < 4 * error
