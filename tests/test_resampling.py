"""Resampling: unbiased, never a particle of zero weight, any number of samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tsi.errors import ConfigurationError
from tsi.samplers.parts.allocation import (
    island_argmax,
    rebase_allocation,
    rebase_counts,
    top_k_replicate,
)
from tsi.samplers.parts.resampling import (
    _floor_counts,
    grid,
    multinomial,
    residual,
    ssp,
    stratified,
    systematic,
)
from tsi.scaled_bits import scale_bits

PROPORTIONAL = [multinomial, systematic, stratified, residual, ssp]
DETERMINISTIC = [top_k_replicate(4), island_argmax(4), rebase_allocation]
WEIGHTS = np.array([0.0, 0.07, 0.31, 0.02, 0.0, 0.2, 0.4, 0.0])


def name(scheme):
    return getattr(scheme, "__name__", None) or type(scheme).__name__


@functools.cache
def compiled(scheme):
    """The scheme as one program for each size, which the tests share."""
    return jax.jit(scheme, static_argnums=2)


def counts_over_runs(scheme, log_weights, num_samples, num_runs, seed=0):
    """Counts [runs, N]."""
    keys = jax.random.split(jax.random.key(seed), num_runs)
    draw = jax.jit(jax.vmap(lambda key: scheme(key, log_weights, num_samples)))
    ancestors = np.asarray(draw(keys))
    assert ancestors.dtype == np.int32
    assert ancestors.shape == (num_runs, num_samples)
    size = len(log_weights)
    flat = (ancestors + size * np.arange(num_runs)[:, None]).ravel()
    return np.bincount(flat, minlength=num_runs * size).reshape(num_runs, size)


@pytest.mark.long
@pytest.mark.parametrize("num_samples", [5, 19, 1])
@pytest.mark.parametrize("scheme", PROPORTIONAL, ids=name)
def test_expected_counts_are_num_samples_times_the_weight(scheme, num_samples):
    num_runs = 40_000
    log_weights = jnp.log(jnp.asarray(WEIGHTS, jnp.float32)) + 3.0
    counts = counts_over_runs(scheme, log_weights, num_samples, num_runs)
    expected = num_samples * WEIGHTS
    error = counts.mean(0) - expected
    standard_error = counts.std(0) / np.sqrt(num_runs)
    varies = standard_error > 0
    np.testing.assert_allclose(error[~varies], 0.0, atol=1e-4)
    z = error[varies] / standard_error[varies]
    assert np.abs(z).max() < 4.0
    # Power: a bias of 2 % of the largest weight's share would show at four errors.
    assert 4.0 * standard_error[6] < 0.02 * expected[6] or num_samples == 1


@pytest.mark.parametrize("scheme", PROPORTIONAL[1:], ids=name)
def test_low_variance_schemes_keep_counts_near_their_expectation(scheme):
    log_weights = jnp.log(jnp.asarray(WEIGHTS, jnp.float32))
    counts = counts_over_runs(scheme, log_weights, 10, 2000)
    distance = np.abs(counts - 10 * WEIGHTS)
    if scheme in (systematic, ssp):
        assert distance.max() < 1.0
    if scheme is residual:
        assert (counts >= np.floor(10 * WEIGHTS + 1e-6)).all()
    if scheme is stratified:
        assert distance.max() < 2.0


@pytest.mark.parametrize("scheme", PROPORTIONAL, ids=name)
def test_joint_frequencies_agree_with_the_weights(scheme):
    # One draw at random from each resample is a draw from the weights.
    log_weights = jnp.log(jnp.asarray(WEIGHTS, jnp.float32))
    num_runs = 20_000
    keys = jax.random.split(jax.random.key(5), num_runs)
    ancestors = jax.jit(jax.vmap(lambda key: scheme(key, log_weights, 6)))(keys)
    picks = jax.random.randint(jax.random.key(6), (num_runs,), 0, 6)
    drawn = np.asarray(ancestors)[np.arange(num_runs), np.asarray(picks)]
    observed = np.bincount(drawn, minlength=8)
    alive = WEIGHTS > 0
    assert observed[~alive].sum() == 0
    p = stats.chisquare(observed[alive], WEIGHTS[alive] * num_runs).pvalue
    assert p > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("scheme", PROPORTIONAL + DETERMINISTIC, ids=name)
@pytest.mark.parametrize("size", [4, 1000, 100_000])
def test_a_zero_weight_particle_is_never_drawn(scheme, size):
    rng = np.random.default_rng(size)
    draw = compiled(scheme)
    for trial in range(3):
        log_weights = rng.normal(scale=3.0, size=size).astype(np.float32)
        log_weights[rng.random(size) < 0.3] = -np.inf
        log_weights[-1] = log_weights[0] = -np.inf
        if scheme is DETERMINISTIC[1]:
            # Islands do not mix, so each must have a particle of some weight.
            log_weights[1::4] = 0.0
        else:
            log_weights[1] = 0.0
        for seed in range(3 if size == 100_000 else 10):
            drawn = draw(jax.random.key(seed), log_weights, size)
            assert np.isfinite(log_weights[np.asarray(drawn)]).all(), (trial, seed)


@pytest.mark.parametrize("scheme", PROPORTIONAL, ids=name)
def test_a_single_survivor_gets_every_place(scheme):
    for place in (0, 3, 6):
        log_weights = jnp.full(7, -jnp.inf).at[place].set(-500.0)
        drawn = compiled(scheme)(jax.random.key(1), log_weights, 9)
        np.testing.assert_array_equal(drawn, np.full(9, place))


@pytest.mark.parametrize("scheme", [*PROPORTIONAL, *DETERMINISTIC], ids=name)
def test_without_any_weight_particles_keep_their_places(scheme):
    for value in (-jnp.inf, jnp.nan):
        drawn = compiled(scheme)(jax.random.key(1), jnp.full(8, value), 8)
        np.testing.assert_array_equal(drawn, np.arange(8))


@pytest.mark.parametrize("scheme", PROPORTIONAL, ids=name)
def test_a_nan_weight_is_never_drawn(scheme):
    log_weights = jnp.zeros(6).at[2].set(jnp.nan)
    counts = counts_over_runs(scheme, log_weights, 6, 500)
    assert counts[:, 2].sum() == 0


@pytest.mark.parametrize("scheme", [systematic, residual, ssp], ids=name)
@pytest.mark.parametrize("size", [3, 1000, 100_000])
def test_equal_weights_give_every_particle_one_child(scheme, size):
    for seed in range(5):
        drawn = compiled(scheme)(jax.random.key(seed), jnp.full(size, -2.3), size)
        np.testing.assert_array_equal(np.sort(np.asarray(drawn)), np.arange(size))


@pytest.mark.long
@pytest.mark.parametrize("scheme", PROPORTIONAL, ids=name)
def test_large_systems_stay_unbiased(scheme):
    size, num_runs = 100_000, 20
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=size).astype(np.float32)
    weights = np.exp(log_weights.astype(np.float64))
    weights /= weights.sum()
    draw = compiled(scheme)
    keys = jax.random.split(jax.random.key(2), num_runs)
    total = np.zeros(size)
    for key in keys:
        drawn = np.asarray(draw(key, jnp.asarray(log_weights), size))
        total += np.bincount(drawn, minlength=size)
    # Blocks of neighbours: a drifting cumulative sum would move mass between them.
    blocks = total.reshape(100, -1).sum(1) / num_runs
    expected = (weights * size).reshape(100, -1).sum(1)
    assert np.abs(blocks / expected - 1.0).max() < 4.5 / np.sqrt(num_runs * 1000)


def test_top_k_replicate_is_sorting_and_repeating():
    rng, draw = np.random.default_rng(1), compiled(top_k_replicate(3))
    for _ in range(20):
        scores = rng.normal(size=12).astype(np.float32)
        drawn = draw(jax.random.key(0), scores, 12)
        expected = np.repeat(np.argsort(-scores, kind="stable")[:4], 3)
        np.testing.assert_array_equal(drawn, expected)


def test_top_k_replicate_fills_with_survivors_when_too_few_live():
    log_weights = jnp.array([-jnp.inf, 1.0, -jnp.inf, 2.0, -jnp.inf, -jnp.inf])
    drawn = compiled(top_k_replicate(2))(jax.random.key(0), log_weights, 6)
    np.testing.assert_array_equal(drawn, [3, 3, 1, 1, 3, 3])


def test_island_argmax_copies_each_islands_best():
    scores = jnp.array([0.1, 0.3, 0.2, 5.0, -1.0, -2.0, -3.0, -0.5])
    drawn = compiled(island_argmax(4))(jax.random.key(0), scores, 8)
    np.testing.assert_array_equal(drawn, [3, 3, 3, 3, 7, 7, 7, 7])


@pytest.mark.parametrize("scheme", PROPORTIONAL + DETERMINISTIC)
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_no_weight_is_not_drawn(scheme, odd):
    log_weights = jnp.array([0.0, odd, 1.0, -jnp.inf])
    for seed in range(20):
        drawn = np.asarray(compiled(scheme)(jax.random.key(seed), log_weights, 4))
        assert set(drawn.tolist()) <= {0, 2}


def test_island_argmax_gives_a_dead_island_the_best_of_all():
    scores = jnp.array([0.1, 0.3, -jnp.inf, -jnp.inf])
    draw = compiled(island_argmax(2))
    drawn = draw(jax.random.key(0), scores, 4)
    np.testing.assert_array_equal(drawn, [1, 1, 1, 1])
    drawn = draw(jax.random.key(0), jnp.full(4, -jnp.inf), 4)
    np.testing.assert_array_equal(drawn, [0, 1, 2, 3])


compiled_counts = jax.jit(rebase_counts, static_argnums=1)


def test_rebase_hands_out_ceilings_best_first_while_they_last():
    rng, key = np.random.default_rng(3), jax.random.key(0)
    for num_children in (1, 5, 16, 40):
        for _ in range(20):
            scores = rng.normal(scale=2.0, size=10).astype(np.float32)
            shares = np.exp(scores.astype(np.float64))
            shares /= shares.sum()
            left, expected = num_children, np.zeros(10, int)
            for i in np.argsort(-scores, kind="stable"):
                expected[i] = min(int(np.ceil(num_children * shares[i])), left)
                left -= expected[i]
            counts = compiled_counts(scores, num_children)
            np.testing.assert_array_equal(counts, expected)
            drawn = compiled(rebase_allocation)(key, scores, num_children)
            np.testing.assert_array_equal(drawn, np.repeat(np.arange(10), expected))


def test_rebase_does_not_round_an_exact_share_up():
    np.testing.assert_array_equal(compiled_counts(jnp.zeros(4), 4), [1, 1, 1, 1])
    np.testing.assert_array_equal(compiled_counts(jnp.zeros(7), 7), np.ones(7))


def test_widths_that_do_not_fit_are_reported():
    with pytest.raises(ConfigurationError, match="must divide"):
        top_k_replicate(4)(jax.random.key(0), jnp.zeros(6), 6)
    with pytest.raises(ConfigurationError, match="must divide"):
        island_argmax(4)(jax.random.key(0), jnp.zeros(6), 6)
    with pytest.raises(ConfigurationError, match="at least one"):
        top_k_replicate(0)(jax.random.key(0), jnp.zeros(6), 6)


def test_integers_of_32_bits_multiply_and_divide_as_those_of_python_do():
    rng = np.random.default_rng(0)
    bits, bounds = rng.integers(0, 2**32, (2, 10_000), np.uint32)
    products = (bits.astype(object) * bounds.astype(object)) >> 32
    scaled, place = jax.jit(scale_bits), jax.jit(grid, static_argnums=2)
    floors = jax.jit(_floor_counts, static_argnums=2)
    assert (np.asarray(scaled(bits, bounds)).astype(object) == products).all()
    for size in (1, 3, 64, 1025, 2**16 + 1, 2**20):
        places = np.arange(size).astype(object)
        for total in (2**30, 2**30 - 17, 2**30 + 2**19, 5):
            offsets = rng.integers(0, total, size, np.uint32)
            exact = (places * total + offsets.astype(object)) // size
            found = np.asarray(place(np.uint32(total), offsets, size))
            assert (found.astype(object) == exact).all(), (size, total)
            units = rng.integers(0, total + 1, 50, np.uint32)
            counts, rest = floors(units, np.uint32(total), size)
            whole = units.astype(object) * size
            assert (np.asarray(counts).astype(object) == whole // total).all()
            assert (np.asarray(rest).astype(object) == whole % total).all()


@pytest.mark.parametrize("scheme", PROPORTIONAL, ids=name)
@pytest.mark.parametrize("small", [5e-8, 2e-9])
def test_the_least_and_the_largest_draw_belong_to_particles_with_weight(
    scheme, small, monkeypatch
):
    log_weights = jnp.log(jnp.asarray([0.0, small, 1.0 - 2 * small, small, 0.0]))
    for fill, first, last in ((0, 1, 1), (2**32 - 1, 3, 3)):

        def bits(key, shape=(), dtype=jnp.uint32, fill=fill):
            return jnp.full(shape, fill, dtype)

        monkeypatch.setattr(jax.random, "bits", bits)
        # Compiled anew, since the bits are.
        draw = jax.jit(lambda key: scheme(key, log_weights, 1))
        drawn = np.asarray(draw(jax.random.key(0)))
        if scheme in (multinomial, systematic, stratified):
            assert drawn.tolist() == [first] == [last]
        else:
            assert set(drawn.tolist()) <= {1, 2, 3}


@pytest.mark.long
@pytest.mark.parametrize("scheme", [residual, ssp, systematic], ids=name)
def test_two_in_a_million_are_drawn_two_times_in_a_million(scheme):
    log_weights = jnp.log(jnp.asarray([1.0 - 2e-6, 2e-6], jnp.float32))
    draws = jax.jit(
        jax.vmap(lambda key: jnp.sum(scheme(key, log_weights, 1) == 1)),
    )
    count = sum(
        int(draws(jax.random.split(jax.random.key(seed), 1_000_000)).sum())
        for seed in range(6)
    )
    # Poisson of mean 12: outside of [2, 27] with probability 1e-4.
    assert 2 <= count <= 27


def test_residual_does_not_send_what_is_sure_to_the_lottery():
    # In float32 these are off from multiples of a quarter by rounding.
    log_weights = jnp.log(jnp.asarray([0.5, 0.25, 0.25], jnp.float32)) - 11.7
    counts = counts_over_runs(residual, log_weights, 4, 1_000)
    assert (counts == [2, 1, 1]).all()


@pytest.mark.parametrize("scheme", PROPORTIONAL, ids=name)
def test_systems_beyond_the_integers_are_refused_by_number(scheme):
    with pytest.raises(ConfigurationError, match="1048577"):
        scheme(jax.random.key(0), jnp.zeros(2**20 + 1), 2**20 + 1)
