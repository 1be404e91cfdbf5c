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
from tsi.samplers.pruning import russian_roulette
from tsi.targets.examples import EXAMPLES, peaked, smooth
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
