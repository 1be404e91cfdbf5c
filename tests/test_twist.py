"""Twisted targets: any twist is exact, the exact one has no variance."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from long_runs import jit_optimised

import tsi
from tsi import samplers
from tsi.bench.unbiasedness import judge_tabular
from tsi.errors import CapabilityError, ConfigurationError, UnknownNameError
from tsi.samplers.parts.potentials import product, terminal
from tsi.target import require
from tsi.targets import examples as tabular_examples
from tsi.targets import tabular
from tsi.twists.exact import exact_log_twist, table_twist, with_twisted_proposal
from tsi.twists.twisted_target import TwistedTarget

KEY = jax.random.key(0)
CLAIM = {
    "product": product().path_log_weight,
    "last": terminal("odds").path_log_weight,
}


def compile_runs(twisted, sampler=None, num_particles=8):
    sampler = samplers.twisted_smc() if sampler is None else sampler

    def one(key, params):
        return tsi.run(sampler, twisted, key, num_particles, params)

    return jax.jit(jax.vmap(one, (0, None)))


def runs_of(twisted, sampler=None, num_runs=20_000, num_particles=8):
    keys = jax.random.split(KEY, num_runs)
    return compile_runs(twisted, sampler, num_particles)(keys, twisted.target.params)


def judge(target, runs, accumulate):
    return judge_tabular(
        target,
        target.truth(CLAIM[accumulate]),
        runs.particles.particles.symbols,
        runs.state.log_weights,
        runs.state.log_evidence,
    )


def random_log_twist(target, scale=1.0):
    return scale * np.random.default_rng(5).normal(size=target.log_potentials.shape)


def by_backward_enumeration(target, t, symbol, accumulate):
    """Expected future potential of a path with `symbol` at step t."""
    if symbol == target.end or t == target.max_steps - 1:
        return 1.0
    total = 0.0
    for k in range(target.num_symbols):
        ends = k == target.end or t + 2 == target.max_steps
        counts = accumulate == "product" or ends
        gain = np.exp(target.log_potentials[t + 1, k]) if counts else 1.0
        future = by_backward_enumeration(target, t + 1, k, accumulate)
        total += target.transition[symbol, k] * gain * future
    return total


@pytest.mark.parametrize("accumulate", ["product", "last"])
@pytest.mark.parametrize("name", tabular_examples.EXAMPLES)
def test_the_exact_twist_is_the_expected_future(name, accumulate):
    target = tabular_examples.EXAMPLES[name]()
    table = np.exp(exact_log_twist(target, accumulate))
    for t in range(target.max_steps):
        for k in range(target.num_symbols):
            expected = by_backward_enumeration(target, t, k, accumulate)
            np.testing.assert_allclose(table[t, k], expected, rtol=1e-9)


@functools.cache
def at_random(accumulate):
    """Runs under a random twist; all examples have one shape, hence one program."""
    shape = tabular_examples.smooth()
    twist = table_twist(random_log_twist(shape))
    return compile_runs(TwistedTarget(shape, twist, accumulate))


@pytest.mark.long
@pytest.mark.parametrize("accumulate", ["product", "last"])
@pytest.mark.parametrize("name", tabular_examples.EXAMPLES)
def test_any_positive_twist_leaves_evidence_and_posterior_alone(name, accumulate):
    target = tabular_examples.EXAMPLES[name]()
    runs = at_random(accumulate)(jax.random.split(KEY, 20_000), target.params)
    measure = judge(target, runs, accumulate)
    assert abs(measure.z) < 4
    assert measure.p_value > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("accumulate", ["product", "last"])
@pytest.mark.parametrize("name", ["peaked", "impossible prefixes", "unequal lengths"])
def test_exact_twist_and_proposal_have_no_variance(name, accumulate):
    target = with_twisted_proposal(tabular_examples.EXAMPLES[name](), accumulate)
    twist = table_twist(exact_log_twist(target, accumulate))
    sampler = samplers.smc(schedule=samplers.every_step)
    state = runs_of(TwistedTarget(target, twist, accumulate), sampler, 2_000).state
    truth = target.truth(CLAIM[accumulate]).log_evidence
    np.testing.assert_allclose(state.log_evidence, truth, atol=1e-5)


def test_the_exact_twist_alone_lowers_the_variance_a_lot():
    # Six right steps in a row earn e^8 times what any other path does.
    last = np.zeros((6, 2))
    last[-1, 1] = -8.0
    target = tabular.TabularTarget(
        initial=[0.5, 0.5],
        transition=[[0.5, 0.5], [0.0, 1.0]],
        log_potentials=last,
    )
    variances = {}
    for name, table in (("none", 0.0 * last), ("exact", exact_log_twist(target))):
        twisted = TwistedTarget(target, table_twist(table))
        runs = runs_of(twisted, num_runs=1_000, num_particles=64)
        variances[name] = float(np.var(np.asarray(runs.state.log_evidence)))
    assert variances["exact"] < 0.1 * variances["none"], variances


def test_a_twist_of_zero_ends_prefixes_without_a_future():
    target = tabular.TabularTarget(
        initial=[0.5, 0.5],
        transition=[[0.7, 0.3], [0.0, 1.0]],
        log_potentials=[[0.2, 0.1], [0.3, -0.2], [0.5, -np.inf]],
    )
    log_table = exact_log_twist(target)
    # Symbol 1 leads to itself, and is impossible in the end.
    np.testing.assert_array_equal(np.isinf(log_table[:2]), [[False, True]] * 2)
    twisted = TwistedTarget(target, table_twist(log_table))
    measure = judge(target, runs_of(twisted), "product")
    assert abs(measure.z) < 4
    assert measure.p_value > 1e-3
    first, _ = twisted.propose(KEY, 0, twisted.init(KEY, 64))
    dead = np.asarray(first.particles.symbols[:, 0]) == 1
    told = np.asarray(twisted.log_potential(0, first))
    assert dead.any()
    np.testing.assert_array_equal(np.isinf(told), dead)


def test_an_impossible_prefix_stays_so_under_an_infinite_twist():
    target = tabular_examples.smooth()
    target.log_potentials[0, 1] = -np.inf
    twisted = TwistedTarget(
        target, lambda t, rows, _: jnp.inf / (1.0 + 0 * rows.length)
    )
    first, _ = twisted.propose(KEY, 0, twisted.init(KEY, 64))
    impossible = np.asarray(first.particles.symbols[:, 0]) == 1
    told = np.asarray(twisted.log_potential(0, first))
    np.testing.assert_array_equal(told, np.where(impossible, -np.inf, np.inf))


def test_a_twist_can_bring_its_own_proposal():
    target = tabular_examples.peaked()
    drawn_from = with_twisted_proposal(target)
    tables = drawn_from.params

    def propose(key, t, particles, params):
        return drawn_from.propose(key, t, particles, tables)

    twist = table_twist(exact_log_twist(target))
    twisted = TwistedTarget(target, twist, propose=propose)
    truth = target.truth(CLAIM["product"]).log_evidence
    state = runs_of(twisted, num_runs=500).state
    np.testing.assert_allclose(state.log_evidence, truth, atol=1e-5)
    anyhow = TwistedTarget(
        target, table_twist(random_log_twist(target)), "last", propose
    )
    measure = judge(target, runs_of(anyhow), "last")
    assert abs(measure.z) < 4
    assert measure.p_value > 1e-3


def test_parameters_reach_the_target_and_the_twist():
    target = tabular_examples.smooth()
    changed = tabular_examples.peaked()

    def twist(t, particles, params):
        return params.log_potentials[t, 0] * jnp.ones(particles.symbols.shape[0])

    twisted = TwistedTarget(target, twist)
    assert twisted.max_steps == 4
    particles, _ = twisted.propose(KEY, 0, twisted.init(KEY, 6), changed.params)
    told = twisted.log_potential(0, particles, changed.params)
    first = np.asarray(particles.particles.symbols[:, 0])
    np.testing.assert_allclose(told, changed.log_potentials[0, first] + 1.5, rtol=1e-5)


class Walked(NamedTuple):
    x: jax.Array
    length: jax.Array


class Walk:
    """Rows x that grow by t + 1 in step t, each row at a depth of its own."""

    max_steps = 4

    def init(self, key, num_particles, params=None):
        zeros = jnp.zeros(num_particles)
        return Walked(zeros, zeros.astype(jnp.int32))

    def propose(self, key, t, particles, params=None):
        x, length = particles
        live = length < self.max_steps
        return Walked(x + (t + 1) * live, length + live), 0.0 * x

    def log_potential(self, t, particles, params=None):
        return 0.5 * particles.x - 0.1 * t

    def finished(self, particles):
        return particles.length >= self.max_steps

    def gather(self, particles, ancestors):
        return jax.tree.map(lambda leaf: leaf[ancestors], particles)


@pytest.mark.parametrize("accumulate", ["product", "last"])
def test_rows_at_different_depths_are_what_they_are_alone(accumulate):
    def twist(t, particles, params):
        return 0.3 * particles.x + 0.7 * t

    twisted = TwistedTarget(Walk(), twist, accumulate)
    history, told = [twisted.init(KEY, 4)], []
    for t in range(4):
        rows, _ = twisted.propose(KEY, t, history[-1])
        history.append(rows)
        told.append(twisted.log_potential(t, rows)[0])
    # Rows that have taken no, one and three steps, and one that has finished.
    depths = [0, 1, 3, 4]
    mixed = jax.tree.map(
        lambda *rows: jnp.stack([rows[depth][0] for depth in depths]), *history
    )
    stepped, _ = twisted.propose(KEY, jnp.array(depths), mixed)
    potentials = twisted.log_potential(jnp.array(depths), stepped)
    np.testing.assert_allclose(potentials[:3], [told[0], told[1], told[3]], rtol=1e-6)
    np.testing.assert_array_equal(stepped.log_earned[3], mixed.log_earned[3])
    gathered = twisted.gather(stepped, jnp.array([2, 2, 0, 1]))
    np.testing.assert_array_equal(gathered.log_earned[1], stepped.log_earned[2])


@pytest.mark.parametrize("accumulate", ["product", "last"])
def test_cut_and_replayed_particles_earn_what_they_did(accumulate):
    smooth = target = tabular_examples.smooth()
    twisted = TwistedTarget(target, table_twist(random_log_twist(target)), accumulate)
    rows, told = twisted.init(KEY, 5), []
    for t in range(4):
        rows, _ = twisted.propose(jax.random.fold_in(KEY, t), t, rows)
        told.append(twisted.log_potential(t, rows))
    depths = jnp.full(5, 2)
    cut = require(twisted, "truncate", "a test")(rows, depths)
    assert not bool(twisted.finished(cut).any())
    np.testing.assert_allclose(twisted.log_potential(1, cut), told[1], rtol=1e-6)
    for t in (2, 3):
        cut, _ = require(twisted, "replay", "a test")(t, cut, rows)
        np.testing.assert_allclose(twisted.log_potential(t, cut), told[t], rtol=1e-6)
    # Another continuation, over what was there before.
    other = require(twisted, "truncate", "a test")(rows, depths)
    other, _ = twisted.propose(jax.random.key(77), 2, other)
    symbols = np.asarray(other.particles.symbols)
    lp = smooth.log_potentials
    before = lp[0, symbols[:, 0]] + lp[1, symbols[:, 1]]
    expected = lp[2, symbols[:, 2]] + (before if accumulate == "product" else 0.0)
    np.testing.assert_allclose(other.log_earned[:, 2], expected, rtol=1e-5)

    log_prob = require(twisted, "log_prob", "a test")(rows)
    np.testing.assert_array_equal(log_prob, target.log_prob(rows.particles))


@pytest.mark.long
@pytest.mark.parametrize(
    "accumulate", ["product", pytest.param("last", marks=pytest.mark.slow)]
)
def test_chains_run_on_a_twisted_target_and_keep_its_posterior(accumulate):
    table = tabular_examples.unequal_lengths()
    twisted = TwistedTarget(table, table_twist(random_log_twist(table)), accumulate)
    chain = samplers.particle_gibbs(
        potential=samplers.telescoping(), num_sweeps=2, ancestor_sampling=True
    )
    runs = jit_optimised(jax.vmap(lambda key: tsi.run(chain, twisted, key, 8)))(
        jax.random.split(KEY, 20_000)
    )
    plain = samplers.product() if accumulate == "product" else samplers.telescoping()
    judged = judge_tabular(
        table,
        table.truth(plain.path_log_weight),
        runs.particles.particles.symbols,
        runs.state.log_weights,
        runs.state.log_evidence,
    )
    assert abs(judged.z) < 4
    assert judged.p_value > 1e-3


@pytest.mark.parametrize(
    "capability", ["truncate", "replay", "log_prob", "log_proposal"]
)
def test_what_the_target_lacks_the_twisted_one_lacks(capability):
    twisted = TwistedTarget(Walk(), lambda t, particles, params: 0.0 * particles.x)
    with pytest.raises(CapabilityError, match="TwistedTarget has none"):
        require(twisted, capability, "a test")


def test_steps_of_a_foreign_proposal_cannot_be_repeated():
    table = tabular_examples.smooth()
    twisted = TwistedTarget(table, table_twist(np.zeros((4, 3))), propose=table.propose)
    for capability in ("replay", "log_proposal"):
        with pytest.raises(CapabilityError, match=f"`{capability}`"):
            require(twisted, capability, "ancestor sampling")
    assert require(twisted, "truncate", "a chain")


def test_settings_that_cannot_work_are_sentences():
    target = tabular_examples.smooth()
    twist = table_twist(np.zeros((4, 3)))
    with pytest.raises(UnknownNameError, match="last, product"):
        TwistedTarget(target, twist, "sum")

    class Endless:
        propose = None

    with pytest.raises(ConfigurationError, match=r"Endless.*max_steps"):
        TwistedTarget(Endless(), twist)


def test_proposals_of_each_step_follow_their_own_table():
    smooth = tabular_examples.smooth()
    tables = np.stack([smooth.transition, np.eye(3)[[1, 2, 0]] * 0.97 + 0.01])
    target = tabular.TabularTarget(
        smooth.initial,
        smooth.transition,
        smooth.log_potentials[:2],
        proposal_transition=tables,
    )
    rows, _ = target.propose(KEY, 0, target.init(KEY, 20_000))
    rows, correction = target.propose(jax.random.key(1), 1, rows)
    first, second = np.asarray(rows.symbols).T
    followed = (second == (first + 1) % 3).mean()
    assert abs(followed - 0.98) < 4 * np.sqrt(0.98 * 0.02 / 20_000)
    ratio = np.log(smooth.transition / tables[1])[first, second]
    np.testing.assert_allclose(correction, ratio, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigurationError, match="rows of probabilities"):
        tabular.TabularTarget(
            smooth.initial,
            smooth.transition,
            smooth.log_potentials,
            proposal_transition=tables,
        )


@pytest.mark.parametrize("accumulate", ["product", "last"])
def test_a_policy_that_is_not_normalised_keeps_its_scale_under_a_twist(accumulate):
    table = tabular_examples.unequal_lengths()
    scaled = tabular.TabularTarget(
        table.initial,
        table.transition,
        table.log_potentials,
        end=table.end,
        log_scale=np.linspace(-0.5, 1.0, table.max_steps),
    )
    twisted = with_twisted_proposal(scaled, accumulate)
    potential = (
        samplers.product() if accumulate == "product" else samplers.telescoping()
    )
    truth = scaled.truth(potential.path_log_weight)
    assert twisted.truth(potential.path_log_weight).log_evidence == pytest.approx(
        truth.log_evidence
    )
    # Proposed by p G psi, a path has the evidence as its weight.
    symbols, _ = twisted.paths()
    particles = tabular.TabularParticles(
        jnp.asarray(symbols),
        jnp.asarray((symbols >= 0).sum(1)),
        jnp.ones(len(symbols), bool),
    )
    steps = np.arange(scaled.max_steps)
    live = symbols >= 0
    scores = np.where(live, scaled.log_potentials[steps, symbols], 0.0)
    weights = np.asarray(
        potential.path_log_weight(jnp.asarray(scores), jnp.asarray(live))
    )
    ratio = twisted.log_prob(particles) - twisted.log_proposal(particles) + weights
    np.testing.assert_allclose(ratio, truth.log_evidence, rtol=1e-4)
