"""Annealed resampling, island exchange, steering, pruning: exact, and each its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import tsi
from tsi import samplers
from tsi.bench.conformance import check_sampler, target_checks
from tsi.bench.robustness import Programs
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.ess import ess
from tsi.samplers.island_exchange import exchange
from tsi.samplers.parts.annealing import anneal, largest_exponent
from tsi.samplers.parts.optimal_resampling import (
    inclusion_probabilities,
    optimal_resampling,
)
from tsi.samplers.parts.reproduction import Group
from tsi.samplers.pruning import russian_roulette
from tsi.targets.examples import EXAMPLES, peaked, smooth, unequal_lengths
from tsi.weights import log_mean_exp

KEY = jax.random.key(0)

EXACT = {
    "annealed": samplers.annealed_resampling,
    "exchange": lambda: samplers.island_exchange(4, exchange_below=0.9),
    "steering": samplers.smc_steering,
    "pruning": lambda: samplers.pruning(0.7),
    "twisted": samplers.twisted_smc,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_they_keep_every_promise(name):
    check_sampler(EXACT[name]).raise_if_failed()


PRODUCT = samplers.product()

VARIANTS = {
    "annealed, given": lambda: samplers.annealed_resampling((0.3, 0.8), num_islands=2),
    "exchange, product": lambda: samplers.island_exchange(
        2, exchange_below=1.0, potential=PRODUCT, resampling=samplers.multinomial
    ),
    "steering, islands": lambda: samplers.smc_steering(
        2, potential=PRODUCT, num_islands=2
    ),
    "pruning, islands": lambda: samplers.pruning(
        1.0, potential=PRODUCT, num_islands=4, schedule=samplers.every_step
    ),
}


# The ladder of temperatures that is chosen on the way, and each other in islands.
QUICK = ("annealed", "exchange, product", "steering, islands", "pruning, islands")


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in (*EXACT, *VARIANTS)
    ],
)
def test_they_are_exact_on_every_table(name):
    sampler = (EXACT | VARIANTS)[name]()
    programs = Programs(sampler, 8, 20_000)
    for table, make in EXAMPLES.items():
        result = programs(make(), jax.random.key(1))
        for check in target_checks(table, make(), sampler, result):
            assert check.passed, check


def tell_first(sampler, told, finished=None):
    """The state after one step with the log potentials `told`."""
    told = np.asarray(told, np.float32)
    done = np.zeros(told.shape, bool) if finished is None else np.asarray(finished)

    # One program: each operation on its own would be one too.
    @jax.jit
    def tell(told, done):
        state, _ = sampler.ask(KEY, sampler.init(KEY, len(told)))
        return sampler.tell(KEY, state, told, jnp.zeros_like(told), done)[0]

    return tell(told, done)


# Tempered SMC.


def test_bisection_hits_the_effective_sample_size_that_it_aims_at():
    log_scores = 3.0 * jax.random.normal(KEY, (64,))
    assert float(ess(log_scores)) < 16.0
    for fraction in (0.3, 0.5, 0.9):
        exponent = largest_exponent(log_scores, log_scores, fraction)
        assert 0.0 < float(exponent) < 1.0
        size = ess(anneal(log_scores, log_scores, exponent))
        np.testing.assert_allclose(size, 64 * fraction, rtol=1e-3)


def test_the_exponent_is_one_when_all_is_well_and_zero_when_nothing_helps():
    mild = 0.1 * jax.random.normal(KEY, (64,))
    assert float(largest_exponent(mild, mild, 0.5)) == 1.0
    # What is left without the scores is already too unequal.
    assert float(largest_exponent(40.0 * mild, jnp.zeros(64), 0.5)) == 0.0


def test_dead_particles_stay_dead_at_any_exponent():
    log_w = jnp.array([0.0, -jnp.inf, 1.0])
    scores = jnp.array([2.0, -jnp.inf, -3.0])
    np.testing.assert_allclose(
        anneal(log_w, scores, 0.25), [-1.5, -np.inf, 3.25], rtol=1e-6
    )


@pytest.mark.parametrize(
    "schedule", [(0.25, 0.5), lambda t: 0.25 * t], ids=["given", "function"]
)
def test_offspring_carry_the_power_that_annealing_left_out(schedule):
    sampler = samplers.annealed_resampling(schedule)
    told = np.array([0.5, -0.5, 2.0, 1.0])
    state, ask = tell_first(sampler, told), jax.jit(sampler.ask)
    for t, power in ((1, 0.25), (2, 0.5)):
        asked, ancestors = ask(KEY, state._replace(t=jnp.int32(t)))
        rest = np.exp(told[np.asarray(ancestors)]) ** (1.0 - power)
        ratios = np.exp(np.asarray(asked.log_weights)) / rest
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-5)
        mean = np.mean(np.exp(told) ** power) / np.mean(np.exp(told))
        np.testing.assert_allclose(ratios[0], mean, rtol=1e-5)


def test_the_last_exponent_of_a_schedule_holds_from_there_on():
    sampler = samplers.annealed_resampling([0.0, 1.0])
    state = tell_first(sampler, [0.5, -0.5, 2.0, 1.0])
    asked, _ = jax.jit(sampler.ask)(KEY, state._replace(t=jnp.int32(7)))
    np.testing.assert_allclose(asked.log_weights, 0.0, atol=1e-6)


# Islands with exchange.


@pytest.mark.long
def test_without_exchange_islands_are_those_of_smc_bit_for_bit():
    target = peaked()
    for settings in ({}, {"schedule": samplers.every_step}):
        apart = samplers.smc(num_islands=4, **settings)
        never = samplers.island_exchange(4, exchange_below=0.0, **settings)
        first, second = (
            jax.jit(lambda key, sampler=sampler: tsi.run(sampler, target, key, 16))(KEY)
            for sampler in (apart, never)
        )
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(a, b)


def test_whole_islands_are_copied_and_carry_their_part_of_the_weight():
    sampler = samplers.island_exchange(4, schedule=samplers.never)
    told = np.array([0.0, 0.2, 9.0, 9.5, -9.0, -9.5, -9.0, -8.0])
    state, ask = tell_first(sampler, told), jax.jit(sampler.ask)
    asked, ancestors = ask(KEY, state)
    copied = np.asarray(ancestors).reshape(4, 2)
    islands = copied[:, 0] // 2
    np.testing.assert_array_equal(copied, islands[:, None] * 2 + np.arange(2))
    assert (np.bincount(islands, minlength=4) == [0, 4, 0, 0]).all()
    weights = np.exp(np.asarray(asked.log_weights)).reshape(4, 2)
    np.testing.assert_allclose(weights.mean(1), 1.0, rtol=1e-5)
    ratio = np.exp(9.5 - 9.0)
    np.testing.assert_allclose(weights[:, 1] / weights[:, 0], ratio, rtol=1e-5)
    np.testing.assert_allclose(asked.log_scores, told[ancestors], rtol=1e-6)
    assert bool(asked.resampled.all())
    # A second question, with nothing told in between, moves nothing.
    _, ancestors = ask(KEY, asked)
    np.testing.assert_array_equal(ancestors, np.arange(8))


def test_equal_islands_are_left_alone():
    sampler = samplers.island_exchange(4, resampling=samplers.multinomial)
    state = tell_first(sampler, [0.1, 0.2, 0.2, 0.1, 0.0, 0.3, 0.3, 0.0])
    _, ancestors = jax.jit(sampler.ask)(KEY, state)
    np.testing.assert_array_equal(ancestors, np.arange(8))


def test_the_dead_of_a_copied_island_are_not_copied():
    sampler = samplers.island_exchange(2)
    state = tell_first(sampler, [0.0, 0.0, 3.0, -np.inf])
    copied, sources = jax.jit(exchange)(state, jnp.array([1, 1], jnp.int32))
    np.testing.assert_array_equal(sources, [2, 1, 2, 3])
    expected = [0.0, -np.inf, 0.0, -np.inf]
    weights = copied.log_weights - copied.log_weights[0]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(log_mean_exp(copied.log_weights), 0.0, atol=1e-6)


# Optimal resampling, and steering by it.

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


# Pruning.


def test_roulette_leaves_large_weights_alone_and_is_fair_to_small_ones():
    weights = np.array([0.0, 0.01, 0.2, 0.3, 0.5, 1.2, 4.79, 1.0])
    exempt = jnp.arange(8) == 3
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray(np.log(weights), jnp.float32)
    keys = jax.random.split(KEY, 200_000)
    play = jax.vmap(lambda key: russian_roulette(key, log_weights, exempt, 0.6))
    played = jax.jit(play)(keys)
    played = np.exp(np.asarray(played, np.float64))
    np.testing.assert_allclose(played[:, [0, 3, 5, 6, 7]].std(0), 0.0, atol=1e-9)
    np.testing.assert_allclose(played[0, [3, 5, 6, 7]], weights[[3, 5, 6, 7]], 1e-5)
    for i in (1, 2, 4):
        survived = played[:, i] > 0.0
        np.testing.assert_allclose(played[survived, i], 0.6, rtol=1e-5)
        test = stats.binomtest(int(survived.sum()), 200_000, weights[i] / 0.6)
        assert test.pvalue > 1e-3


def test_the_pruned_rest_in_their_places_until_the_schedule_resamples():
    told = [3.0, 2.5, 2.0, 2.0, -9.0, -9.0, -9.0, -9.0]
    finished = [False] * 7 + [True]
    patient = samplers.pruning(0.5, schedule=samplers.never)
    asked, ancestors = jax.jit(patient.ask)(KEY, tell_first(patient, told, finished))
    np.testing.assert_array_equal(ancestors, np.arange(8))
    dead = np.asarray(asked.log_weights) == -np.inf
    np.testing.assert_array_equal(dead, [False] * 4 + [True] * 3 + [False])
    # Dead for good, whatever they are told next.
    good = jnp.full(8, 5.0)
    told_again, info = jax.jit(patient.tell)(
        KEY, asked, good, jnp.zeros(8), jnp.zeros(8, bool)
    )
    np.testing.assert_array_equal(np.isinf(told_again.log_weights), dead)
    assert not bool(info.resampled)

    busy = samplers.pruning(0.5, schedule=samplers.every_step)
    asked, ancestors = jax.jit(busy.ask)(KEY, tell_first(busy, told, finished))
    assert np.isfinite(np.asarray(asked.log_weights)).all()
    assert not np.isin(np.asarray(ancestors), [4, 5, 6]).any()


def test_a_threshold_of_zero_prunes_nothing():
    state = tell_first(samplers.pruning(0.0), [0.0, -30.0, 0.0, 0.0])
    asked, _ = samplers.pruning(0.0).ask(KEY, state)
    np.testing.assert_array_equal(asked.log_weights, state.log_weights)


@pytest.mark.parametrize(
    ("attempt", "complaint"),
    [
        (lambda: samplers.annealed_resampling([0.5, 1.5]), r"exponents in \[0, 1\]"),
        (lambda: samplers.annealed_resampling([]), "one or more exponents"),
        (lambda: samplers.annealed_resampling(ess_fraction=2.0), "ess_fraction in"),
        (lambda: samplers.island_exchange(4, exchange_below=-0.1), r"in \[0, 1\]"),
        (lambda: samplers.island_exchange(4).init(KEY, 6), "4 islands of equal size"),
        (lambda: samplers.smc_steering(4).init(KEY, 6), "width must divide"),
        (lambda: samplers.smc_steering(0).init(KEY, 6), "at least one"),
        (lambda: samplers.pruning(1.5), "Above 1"),
        (lambda: samplers.twisted_smc(ess_fraction=1.5), r"in \[0, 1\]"),
    ],
)
def test_settings_that_cannot_work_are_sentences(attempt, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        attempt()


@pytest.mark.parametrize(
    "make", [samplers.pruning, samplers.smc_steering, samplers.island_exchange]
)
def test_weights_that_mean_nothing_on_the_way_are_refused(make):
    for potential in (samplers.terminal(), samplers.latest()):
        with pytest.raises(ConfigurationError, match="product, telescoping or uniform"):
            make(potential=potential)


def test_an_unknown_tempering_schedule_lists_the_known_one():
    with pytest.raises(UnknownNameError, match="Known: ess"):
        samplers.annealed_resampling("linear")


def test_killed_particles_take_no_further_step():
    run = jax.jit(lambda key: tsi.run(samplers.pruning(0.9), smooth(), key, 32))(KEY)
    dead = np.isneginf(np.asarray(run.state.log_weights))
    lengths = np.asarray(run.particles.length)
    assert dead.any()
    assert (lengths[dead] < 4).all()
    assert (lengths[~dead] == 4).all()
