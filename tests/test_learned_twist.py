"""Learned twists: exact whatever they learned, and they learn the exact twist."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from long_runs import jit_optimised
from numpyro_programs import GAUSSIAN, gaussian

import tsi
from tsi import samplers
from tsi.bench.unbiasedness import judge_tabular
from tsi.samplers.contrastive_twist import contrast, contrastive_loss, fit_twist
from tsi.samplers.parts.potentials import product, terminal
from tsi.targets.examples import EXAMPLES, smooth
from tsi.targets.tabular import TabularTarget
from tsi.twists.exact import exact_log_twist
from tsi.twists.learned import LearnedTwist, last_symbol, log_linear
from tsi.twists.twisted_target import TwistedParams, TwistedTarget

KEY = jax.random.key(0)
SHAPE = smooth()
TWIST = LearnedTwist(log_linear, last_symbol(3))
NONE = jnp.zeros((4, 3))
OPTIMISER = optax.adam(optax.exponential_decay(0.1, 100, 0.5))


def narrow():
    """Four steps that must all be right, for e^8 times what any other path earns."""
    last = np.zeros((4, 3))
    last[-1, 1:] = -8.0
    return TabularTarget(
        initial=[0.3, 0.4, 0.3],
        transition=[[0.3, 0.4, 0.3], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]],
        log_potentials=last,
    )


TABLES = EXAMPLES | {"narrow": narrow}
QUICK = ("narrow", "unequal lengths")


@functools.cache
def fitting():
    """One program for all tables, which have one shape."""
    return jit_optimised(
        lambda params: fit_twist(KEY, SHAPE, TWIST, NONE, OPTIMISER, 1000, 800, params)
    )


@functools.cache
def fitted(name):
    """What is learned on a table."""
    return fitting()(TABLES[name]().params).theta


@functools.cache
def running():
    """20,000 runs of 32 particles, whatever table and theta."""
    twisted = TwistedTarget(SHAPE, TWIST.log_twist)
    sampler = samplers.twisted_smc()
    return jit_optimised(
        jax.vmap(lambda key, both: tsi.run(sampler, twisted, key, 32, both), (0, None))
    )


def runs_of(target, theta):
    both = TwistedParams(target.params, jnp.asarray(theta, jnp.float32))
    return running()(jax.random.split(KEY, 20_000), both)


def possible(target):
    """Which symbols can be where, with a future, and unfinished, [T, K]."""
    truth = target.truth(product().path_log_weight)
    found = np.zeros((target.max_steps, target.num_symbols), bool)
    for path in truth.symbols[truth.posterior > 0]:
        for t, (now, then) in enumerate(itertools.pairwise(path)):
            found[t, now] |= then >= 0
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in TABLES
    ],
)
def test_the_fit_is_the_exact_twist_up_to_constants(name):
    target = TABLES[name]()

    def off(theta):
        worst = 0.0
        for t, seen in enumerate(possible(target)[:-1]):
            error = (np.asarray(theta)[t] - exact_log_twist(target)[t])[seen]
            # The constant is not free where some have ended, with a twist of one.
            free = error.mean() if target.end is None else 0.0
            worst = max(worst, np.abs(error - free).max())
        return worst

    assert off(fitted(name)) < 0.03
    assert off(NONE) > 0.15


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        pytest.param("peaked", 1.0, marks=pytest.mark.slow),
        ("unequal lengths", 2.0),
        ("narrow", None),
    ],
)
def test_any_theta_leaves_evidence_and_posterior_alone(name, scale):
    target = TABLES[name]()
    theta = np.random.default_rng(5).normal(size=(4, 3))
    theta = fitted(name) if scale is None else scale * theta
    runs = runs_of(target, theta)
    measure = judge_tabular(
        target,
        target.truth(product().path_log_weight),
        runs.particles.particles.symbols,
        runs.state.log_weights,
        runs.state.log_evidence,
    )
    assert abs(measure.z) < 4
    assert measure.p_value > 1e-3


def test_a_learned_twist_lowers_the_variance_as_the_exact_one_does():
    target = narrow()
    thetas = {
        "none": NONE,
        "learned": fitted("narrow"),
        "exact": exact_log_twist(target),
    }
    variance = {
        name: float(np.var(np.asarray(runs_of(target, theta).state.log_evidence)))
        for name, theta in thetas.items()
    }
    # Measured: 3.76, 0.320 and 0.320.
    assert variance["learned"] < 0.15 * variance["none"], variance
    assert variance["learned"] < 1.05 * variance["exact"], variance


def test_runs_without_weight_teach_nothing():
    scores = SHAPE.log_potentials.copy()
    scores[-1] = -np.inf
    nothing = TabularTarget(SHAPE.initial, SHAPE.transition, scores)
    fit = fitting()(nothing.params)
    np.testing.assert_array_equal(fit.theta, NONE)
    assert np.isneginf(fit.log_evidence).all()


def exact_slopes(target, theta):
    """-grad L by enumeration, where the last potential counts.

    Probabilities of unfinished prefixes under sigma, less those under pi_t.
    """
    truth = target.truth(terminal("odds").path_log_weight)
    symbols, log_p = truth.symbols, truth.log_prob
    slopes = np.zeros_like(theta)
    for t in range(target.max_steps - 1):
        live, now = symbols[:, t + 1] >= 0, symbols[:, t]
        # Every path carries its prefix's weight: summed over the futures, which have
        # probability one, that is pi_t.
        last = (symbols >= 0).sum(1) - 1
        ended = target.log_potentials[last, symbols[np.arange(len(last)), last]]
        weights = np.exp(log_p + np.where(live, theta[t, now], ended))
        weights /= weights.sum()
        for k in range(target.num_symbols):
            here = live & (now == k)
            slopes[t, k] = truth.posterior[here].sum() - weights[here].sum()
    return slopes


@pytest.mark.parametrize("name", ["peaked", "unequal lengths"])
def test_the_contrast_is_the_gradient_by_enumeration(name):
    target = EXAMPLES[name]()
    theta = np.random.default_rng(3).normal(size=(4, 3))
    slopes, ended = slopes_of_runs()(jnp.asarray(theta, jnp.float32), target.params)
    exact = exact_slopes(target, theta)
    error = np.std(slopes, axis=0) / np.sqrt(len(slopes))
    bias = np.abs(slopes.mean(0) - exact)
    assert error.max() < 0.02 * np.abs(exact).max()
    assert (bias <= 4 * error + 1e-4).all()
    np.testing.assert_array_equal(ended, 0.0)


@functools.cache
def slopes_of_runs():
    def one(key, theta, params):
        shown = contrast(key, SHAPE, TWIST, theta, 4000, params, accumulate="last")
        # Symbols of prefixes that have ended are not shown.
        ended = jnp.sum(jnp.abs(shown.weights), where=shown.features.sum(-1) == 0.0)
        return -jax.grad(contrastive_loss)(theta, log_linear, shown), ended

    many = jax.vmap(one, (0, None, None))
    keys = jax.random.split(KEY, 100)
    return jax.jit(lambda theta, params: many(keys, theta, params))


def test_rows_at_different_depths_use_the_weights_of_their_steps():
    theta = jnp.arange(12.0).reshape(4, 3)
    features = jax.random.normal(KEY, (3, 3))
    told = log_linear(theta, jnp.array([2, 0, 3]), features)
    alone = [log_linear(theta, t, features)[row] for row, t in enumerate((2, 0, 3))]
    np.testing.assert_allclose(told, alone, rtol=1e-6)


def test_the_target_within_is_given_its_own_parameters():
    changed = EXAMPLES["peaked"]()
    both = TwistedParams(changed.params, jnp.ones((4, 3)))
    twisted = TwistedTarget(SHAPE, TWIST.log_twist)
    rows, told = twisted.init(KEY, 6, both), []
    for t in range(2):
        key, before = jax.random.fold_in(KEY, t), rows.particles
        rows, correction = twisted.propose(key, t, rows, both)
        own, expected = SHAPE.propose(key, t, before, changed.params)
        np.testing.assert_array_equal(rows.particles.symbols, own.symbols)
        np.testing.assert_array_equal(correction, expected)
        told.append(twisted.log_potential(t, rows, both))
    symbols = np.asarray(rows.particles.symbols)
    earned = changed.log_potentials[0, symbols[:, 0]]
    np.testing.assert_allclose(told[0], earned + 1.0, rtol=1e-5)
    for method in ("log_prob", "log_proposal"):
        value = getattr(twisted, method)(rows, both)
        own = getattr(SHAPE, method)(rows.particles, changed.params)
        np.testing.assert_array_equal(value, own)
    cut = twisted.truncate(rows, jnp.ones(6, jnp.int32), both)
    again, log_p = twisted.replay(1, cut, rows, both)
    own = np.log(changed.transition[symbols[:, 0], symbols[:, 1]])
    np.testing.assert_allclose(log_p, own, rtol=1e-5)
    np.testing.assert_allclose(
        twisted.log_potential(1, again, both), told[1], rtol=1e-5
    )


def test_a_proposal_of_ones_own_is_given_all_parameters():
    def propose(key, t, particles, params):
        assert isinstance(params, TwistedParams)
        return SHAPE.propose(key, t, particles, params.theta)

    theta = EXAMPLES["peaked"]().params
    twisted = TwistedTarget(
        SHAPE, lambda t, rows, _: 0.0 * rows.length, "last", propose
    )
    empty = twisted.init(KEY, 6)
    rows, correction = twisted.propose(KEY, 0, empty, TwistedParams(None, theta))
    own, expected = SHAPE.propose(KEY, 0, empty.particles, theta)
    np.testing.assert_array_equal(rows.particles.symbols, own.symbols)
    np.testing.assert_array_equal(correction, expected)


def quadratic_twist():
    """log psi_t = a x + b x^2 of the Gaussian target, backwards, as rows (a, b)."""
    g, noise = GAUSSIAN, GAUSSIAN.noise_scale**2
    rows = np.zeros((g.max_steps, 2))
    for t in range(g.max_steps - 2, -1, -1):
        a, b = rows[t + 1]
        precision, shift = 1 / noise - 2 * b, g.observations[t + 1] / noise + a
        spread = 1 + g.transition_scale**2 * precision
        rows[t] = g.decay * shift / spread, -(g.decay**2) * precision / (2 * spread)
    return rows


@pytest.mark.long
def test_a_programs_twist_is_the_backward_filter():
    twist = LearnedTwist(
        log_linear, lambda t, rows, _: jnp.stack([rows.carry, rows.carry**2], axis=-1)
    )
    start = jnp.zeros((GAUSSIAN.max_steps, 2))

    def fit(rate):
        schedule = optax.exponential_decay(0.1, 150, 0.5)
        optimiser = optax.adam(lambda count: rate * schedule(count))
        return fit_twist(KEY, gaussian(), twist, start, optimiser, 500, 1000)

    fits = jax.jit(jax.vmap(fit))(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(fits.theta[0], start)
    np.testing.assert_allclose(fits.theta[1], quadratic_twist(), atol=0.05)
    # No run knows what its own outcome will do to theta, so all of them are unbiased.
    log_ratio = np.asarray(fits.log_evidence, np.float64)
    ratio = np.exp(log_ratio - GAUSSIAN.kalman().log_evidence)
    error = ratio[1].std() / np.sqrt(ratio.shape[1])
    assert error < 0.005
    assert abs(ratio[1].mean() - 1.0) < 4 * error
