"""Tempered SMC and waste-free SMC: a fixed ladder is unbiased, and all states count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.bench.conformance import target_checks
from tsi.bench.robustness import Programs
from tsi.errors import ConfigurationError
from tsi.ess import ess
from tsi.samplers.parts.annealing import next_exponent
from tsi.samplers.parts.potentials import latest, product, terminal, uniform
from tsi.targets.examples import peaked, smooth, unequal_lengths
from tsi.targets.tabular import TabularTarget

KEY = jax.random.key(0)
TARGETS = {"peaked": peaked, "unequal lengths": unequal_lengths}
EXPLORERS = {
    "tempered": (samplers.tempered_smc(), 32),
    "tempered, two moves, product": (
        samplers.tempered_smc(product(), exponents=(0.3, 1.0), num_moves=2),
        60,
    ),
    "waste-free": (samplers.waste_free_smc(num_levels=2, chain_length=3), 35),
    "waste-free, terminal": (
        samplers.waste_free_smc(terminal("odds"), exponents=(0.2, 1.0), chain_length=2),
        24,
    ),
    "tempered, pilot": (samplers.tempered_smc(num_levels=2, exponents="ess"), 60),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if "," not in name else [pytest.mark.slow])
        for name in EXPLORERS
    ],
)
def test_evidence_and_posterior_are_those_of_the_table(name):
    explorer, num_particles = EXPLORERS[name]
    # The slow ones vary more.
    programs = Programs(explorer, num_particles, 20_000 if "," in name else 10_000)
    for index, (title, make) in enumerate(TARGETS.items()):
        run = programs(make(), jax.random.key(80 + index))
        checks = target_checks(title, make(), explorer, run)
        assert [check for check in checks if not check.passed] == []
        # A bias of 2 % would be four standard errors or more.
        evidence = np.exp(np.asarray(run.state.log_evidence, np.float64))
        error = evidence.std() / evidence.mean() / np.sqrt(evidence.size)
        assert error < 0.005


def z_score(log_estimates, log_truth):
    ratio = np.exp(np.asarray(log_estimates, np.float64) - log_truth)
    return (ratio.mean() - 1) / ratio.std() * np.sqrt(ratio.size)


@pytest.mark.long
def test_a_ladder_from_the_same_particles_is_biased_and_one_from_a_pilot_is_not():
    # One symbol, one step: few are worth much, so that the ladder follows the luck.
    target = TabularTarget(
        initial=[0.7, 0.2, 0.1],
        transition=np.eye(3),
        log_potentials=[[0.0, 2.0, 4.0]],
    )
    explorer = samplers.tempered_smc(num_levels=2, exponents="ess", ess_fraction=0.8)

    def evidence(key):
        state = tsi.run(explorer, target, key, 24).state
        return state.log_evidence, state.log_pilot_evidence

    keys = jax.random.split(KEY, 40_000)
    fixed, adaptive = jax.jit(jax.vmap(evidence))(keys)
    truth = target.truth(explorer.path_log_weight).log_evidence
    assert abs(z_score(fixed, truth)) < 4
    assert abs(z_score(adaptive, truth)) > 8


def test_the_exponent_of_the_next_level_is_the_largest_that_keeps_the_ess():
    rng = np.random.default_rng(3)
    scores = jnp.asarray(np.append(4 * rng.normal(size=15), -np.inf), jnp.float32)
    rest = jnp.asarray(0.1 * rng.normal(size=16), jnp.float32)

    def size(present, exponent):
        return float(ess((exponent - present) * scores + rest))

    for present in (0.0, 0.2):
        found = float(next_exponent(jnp.float32(present), scores, rest, 0.5))
        # Fifteen of sixteen are alive, and half of them is what is wanted.
        assert size(present, found) == pytest.approx(7.5, rel=1e-3)
        assert present < found < 1.0
        assert size(present, found + 0.01) < 7.5
    equal = jnp.where(scores > -jnp.inf, 3.0, scores)
    assert float(next_exponent(jnp.float32(0.4), equal, 0 * rest, 0.5)) == 1.0


def test_a_pilot_finds_a_ladder_that_rises_to_the_target():
    explorer = samplers.tempered_smc(
        product(), num_levels=6, exponents="ess", ess_fraction=0.9
    )
    state = tsi.run(explorer, peaked(), KEY, 16 * 14).state
    exponents = np.asarray(state.exponents)
    assert exponents[-1] == 1.0
    assert exponents[0] < 0.5
    rises = np.diff(exponents)
    # A pilot that arrives early stays at the target for the levels that are left.
    assert (rises[exponents[:-1] < 1.0] > 0).all()
    assert (rises >= 0).all()


@pytest.mark.parametrize("num_chains", [1, 3])
def test_waste_free_keeps_every_state_of_every_chain(num_chains):
    explorer = samplers.waste_free_smc(uniform(), num_levels=2, chain_length=4)
    state = tsi.run(explorer, smooth(), KEY, 10 * num_chains).state
    # Without a reward every move is accepted, and no two states are one.
    members = np.asarray(state.members)
    assert len(members) == 4 * num_chains == len(set(members.tolist()))
    assert int(state.accepted) == int(state.proposed) == 2 * 3 * num_chains


def test_a_rejected_move_repeats_the_state_of_its_chain():
    explorer = samplers.waste_free_smc(product(), num_levels=1, chain_length=5)
    state = tsi.run(explorer, peaked(), KEY, 9 * 4).state
    chains = np.asarray(state.members).reshape(5, 4)
    moved = chains[1:] != chains[:-1]
    assert moved.sum() == int(state.accepted)
    assert 0 < moved.sum() < moved.size
    # No chain is ever at another's state after it has moved.
    for p, m in zip(*np.nonzero(moved), strict=True):
        assert chains[p + 1, m] not in chains[: p + 1]


@pytest.mark.parametrize(
    ("explorer", "rollouts"),
    [
        (samplers.tempered_smc(num_levels=3, num_moves=2), 7),
        (samplers.waste_free_smc(num_levels=3, chain_length=4), 13),
    ],
)
def test_a_budget_counts_rollouts_and_moves(explorer, rollouts):
    particles = 1 if rollouts == 7 else 4
    run = tsi.run(explorer, smooth(), KEY, 5 * rollouts)
    assert len(run.state.members) == 5 * particles
    assert int(run.state.proposed) + 5 * particles == 5 * rollouts
    assert explorer.plan(5 * rollouts, 4).rows == 5
    assert explorer.plan(5 * rollouts, 4).turns == rollouts * 4
    assert bool(run.state.done)
    assert np.asarray(run.state.finished).all()
    assert 0.0 < float(explorer.acceptance(run.state)) < 1.0


def test_moves_cost_their_new_steps_only():
    explorer = samplers.tempered_smc(uniform(), num_levels=1)
    run = tsi.run(explorer, smooth(), KEY, 2)
    # One chain: four steps of the rollout, and one to four of the move.
    assert 5 <= int(run.num_steps) <= 8


@pytest.mark.long
@pytest.mark.parametrize("name", ["tempered", "waste-free", "tempered, pilot"])
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("value", [-np.inf, np.nan])
@pytest.mark.filterwarnings("ignore::tsi.errors.InvalidWeightWarning")
def test_weights_of_zero_everywhere_leave_no_evidence_and_no_nan(name, step, value):
    explorer, num_particles = EXPLORERS[name]
    target = smooth()
    target.log_potentials[step] = value
    run = tsi.run(explorer, target, KEY, num_particles)
    assert bool(run.state.done)
    assert float(run.state.log_evidence) == -np.inf
    assert int(run.infos.num_recoveries.sum()) == 1
    assert np.asarray(run.particles.finished).all()
    assert np.isfinite(run.state.log_weights).all()
    assert not np.isnan(np.asarray(run.state.ess))


@pytest.mark.long
@pytest.mark.parametrize("name", ["tempered", "waste-free", "tempered, pilot"])
def test_a_constant_on_all_potentials_moves_the_evidence_and_nothing_else(name):
    explorer, num_particles = EXPLORERS[name]
    target, moved = unequal_lengths(), unequal_lengths()
    # Multiples of 1/64, whose sums with the constant are exact.
    target.log_potentials[:] = np.round(target.log_potentials * 64) / 64
    moved.log_potentials[:] = target.log_potentials + 300.0
    here = tsi.run(explorer, target, KEY, num_particles)
    there = tsi.run(explorer, moved, KEY, num_particles)
    for a, b in zip(
        jax.tree.leaves(here.particles), jax.tree.leaves(there.particles), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    gain = float(there.state.log_evidence) - float(here.state.log_evidence)
    # The gain is 300 times an exponent at each level, and the exponents add up to one.
    assert gain == pytest.approx(300.0, abs=2e-4)
    np.testing.assert_array_equal(here.state.ess, there.state.ess)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.tempered_smc().plan(10, 4), "Use a multiple of 4"),
        (lambda: samplers.waste_free_smc().plan(24, 4), "Use a multiple of 16"),
        (
            lambda: samplers.tempered_smc(exponents="ess").plan(12, 4),
            "for the pilot and again for the run. Use a multiple of 8",
        ),
        (lambda: samplers.tempered_smc(latest()), "`latest` has none"),
        (lambda: samplers.tempered_smc(exponents=(0.5, 0.9)), "rise from above 0"),
        (lambda: samplers.tempered_smc(exponents=(0.5, 0.5, 1.0)), "rise from above 0"),
        (lambda: samplers.waste_free_smc(exponents=()), "rise from above 0"),
        (lambda: samplers.waste_free_smc(exponents="auto"), "pilot run that chooses"),
        (lambda: samplers.tempered_smc(num_levels=0), "num_levels >= 1"),
        (lambda: samplers.tempered_smc(num_moves=0), "num_moves >= 1"),
        (lambda: samplers.waste_free_smc(chain_length=1), "at least two states"),
        (
            lambda: samplers.tempered_smc(exponents="ess", ess_fraction=1.0),
            r"ess_fraction in \(0, 1\)",
        ),
        (
            lambda: samplers.waste_free_smc(ess_fraction=7.0),
            r"ess_fraction in \(0, 1\)",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_the_main_run_starts_with_full_effective_size():
    """The last size of the pilot is not one of the run that counts."""
    explorer = samplers.tempered_smc(num_levels=2, exponents="ess")
    run = jax.jit(lambda key: tsi.run(explorer, peaked(), key, 60))(KEY)
    sizes = np.asarray(run.infos.ess)[: int(run.num_steps)]
    full = run.state.members.size
    assert sizes[0] == full
    first = np.flatnonzero(sizes < full)[0]
    assert (sizes[first:] == full).any()
