"""The auxiliary particle filter and finished-branch SMC: exactness and what is special.

Both are explorers; the rest of the bench judges them in `docs/results/conformance`.
"""

import jax
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.bench.conformance import target_checks
from tsi.bench.robustness import Programs
from tsi.errors import ConfigurationError
from tsi.samplers.parts.potentials import product, telescoping, terminal
from tsi.targets.examples import impossible_prefixes, peaked, smooth, unequal_lengths
from tsi.targets.tabular import TabularTarget

TARGETS = {
    "impossible prefixes": impossible_prefixes,
    "unequal lengths": unequal_lengths,
}
MAKERS = {
    "auxiliary": samplers.auxiliary_particle_filter,
    "finished branches": samplers.finished_branch_smc,
}
POTENTIALS = {"product": product(), "telescoping": telescoping()}


@pytest.mark.long
@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("maker", MAKERS)
def test_both_are_exact_under_both_potentials(maker, potential):
    explorer = MAKERS[maker](POTENTIALS[potential])
    programs = Programs(explorer, 8, 20_000)
    for index, (name, make) in enumerate(TARGETS.items()):
        run = programs(make(), jax.random.key(60 + index))
        checks = target_checks(name, make(), explorer, run)
        assert [check for check in checks if not check.passed] == []


def variance(sampler, target, num_particles=16, num_runs=4_000):
    keys = jax.random.split(jax.random.key(1), num_runs)
    run = jax.jit(jax.vmap(lambda key: tsi.run(sampler, target, key, num_particles)))
    evidence = np.exp(np.asarray(run(keys).state.log_evidence, np.float64))
    return evidence.var() / evidence.mean() ** 2


def fated():
    """The first symbol decides the rest, and its first score misleads."""
    return TabularTarget(
        initial=[0.5, 0.5],
        transition=np.eye(2),
        log_potentials=[[2.0, -2.0], [-4.0, 4.0], [0.0, 0.0]],
    )


@pytest.mark.long
def test_looking_ahead_helps_where_prefixes_decide_and_hurts_where_they_do_not():
    plain = samplers.smc(schedule=samplers.every_step, potential=product())
    ahead = samplers.auxiliary_particle_filter(product())
    assert variance(ahead, fated()) < 0.5 * variance(plain, fated())
    assert variance(ahead, peaked()) > 2.0 * variance(plain, peaked())


def test_trial_steps_are_taken_twice_and_kept_never():
    explorer = samplers.auxiliary_particle_filter()
    run = tsi.run(explorer, smooth(), jax.random.key(0), 6)
    turns = int(run.num_steps)
    assert turns == 7
    slots = np.asarray(run.infos.slots[:turns])
    # The first step is not looked ahead of; then trial and step alternate.
    np.testing.assert_array_equal(slots[1::2], 6)
    np.testing.assert_array_equal(slots[0::2], np.tile(np.arange(6), (4, 1)))


def test_every_branch_that_finished_counts_with_its_mass():
    target = unequal_lengths()
    run = tsi.run(samplers.finished_branch_smc(), target, jax.random.key(3), 8)
    _, length, finished = run.particles
    mass = np.exp(np.asarray(run.state.log_mass, np.float64))
    ended = np.asarray(run.state.finished)
    np.testing.assert_array_equal(ended, mass > 0)
    assert np.asarray(finished)[ended].all()
    # Branches of several lengths are there, more of them than there are rows.
    assert len(set(np.asarray(length)[ended].tolist())) > 2
    assert ended.sum() > 8
    total = float(np.exp(run.state.log_evidence))
    assert mass.sum() == pytest.approx(total, rel=1e-5)
    # Nothing is kept twice: what did not step again stands where it ended.
    assert not np.asarray(finished)[~ended].any()
    assert np.exp(run.state.log_weights).mean() == pytest.approx(1.0, abs=1e-5)
    # A branch's mass is the evidence when it finished times its weight, over N: the
    # first step weighs by f / q alone.
    first = ended & (np.asarray(length) == 1)
    correction = np.log(0.15 / 0.2)
    expected = np.exp(target.log_potentials[0, 2] + correction) / 8
    np.testing.assert_allclose(mass[first], expected, rtol=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_any_number_of_particles_will_do(maker, num_particles):
    run = tsi.run(MAKERS[maker](), peaked(), jax.random.key(0), num_particles)
    assert bool(run.state.done)
    assert np.isfinite(run.state.log_evidence)


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("maker", MAKERS)
def test_weights_of_zero_everywhere_leave_no_evidence_and_no_nan(maker, step):
    for value in (-np.inf, np.nan):
        target = smooth()
        target.log_potentials[step] = value
        run = tsi.run(MAKERS[maker](), target, jax.random.key(0), 4)
        assert float(run.state.log_evidence) == -np.inf
        assert not np.isnan(np.asarray(run.state.log_weights)).any()
        # They go on to the end all the same; a store also has their prefixes.
        finished = np.asarray(run.particles.finished)
        assert finished.sum() == 4


def test_finished_branch_smc_ends_when_only_dead_prefixes_are_left():
    target = unequal_lengths()
    target.log_potentials[1] = -np.inf
    run = tsi.run(samplers.finished_branch_smc(), target, jax.random.key(3), 8)
    assert int(run.num_steps) == 2
    assert bool(run.state.done)
    # What finished in the first step is all the evidence there is.
    assert np.isfinite(run.state.log_evidence)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_limit_below_the_targets_own_ends_the_run(maker):
    run = tsi.run(MAKERS[maker](), smooth(), jax.random.key(0), 4, max_steps=2)
    assert bool(run.state.done)
    assert int(np.asarray(run.particles.length).max()) == 2


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigurationError, match="epsilon in"):
        samplers.auxiliary_particle_filter(epsilon=0.0)
    for make in MAKERS.values():
        with pytest.raises(ConfigurationError, match="product or telescoping"):
            make(terminal())
