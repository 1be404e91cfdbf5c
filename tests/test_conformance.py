"""check_sampler passes every sampler with a target, and catches broken ones by name."""

import jax
import jax.numpy as jnp
import pytest

from tsi import samplers
from tsi.bench.conformance import Report, check_sampler, target_checks
from tsi.bench.robustness import (
    Check,
    Programs,
    driven_checks,
    finished_check,
    zero_weight_checks,
)
from tsi.errors import ConformanceError
from tsi.targets.examples import EXAMPLES, peaked, smooth

EVERY_STEP = {"schedule": samplers.every_step}

FULLY_CHECKED = {
    "smc": samplers.smc,
    "particle filter, odds": samplers.particle_filter,
    "self-consistency": samplers.self_consistency,
}

ON_TABLES = {
    "entropic": lambda: samplers.entropic_particle_filter(max_steps=6),
    "best of n": samplers.best_of_n,
    "particle filter, reward": lambda: samplers.particle_filter("reward"),
    "particle filter, softmax": lambda: samplers.particle_filter("softmax"),
    "entropic, normalised": lambda: samplers.entropic_particle_filter(
        variant="normalised_entropy", max_steps=6
    ),
    "weighted best of n": samplers.weighted_best_of_n,
    "islands": lambda: samplers.smc(num_islands=2, **EVERY_STEP),
    "stratified": lambda: samplers.smc(resampling=samplers.stratified, **EVERY_STEP),
    "residual": lambda: samplers.smc(resampling=samplers.residual, **EVERY_STEP),
    "ssp": lambda: samplers.smc(resampling=samplers.ssp, **EVERY_STEP),
}


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "smc",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in FULLY_CHECKED
            if name != "smc"
        ),
    ],
)
def test_samplers_with_a_target_keep_every_promise(name):
    report = check_sampler(FULLY_CHECKED[name], num_runs=5_000)
    report.raise_if_failed()
    assert report.passed
    assert "posterior, impossible prefixes" in str(report)


def on_tables(sampler, tables=EXAMPLES, num_particles=8):
    """The checks of evidence and posterior on tabular targets: one program."""
    programs = Programs(sampler, num_particles, 20_000)
    checks = []
    for name, make in tables.items():
        result = programs(make(), jax.random.key(0))
        checks += target_checks(name, make(), sampler, result)
    return Report(tuple(checks))


# One of each kind in the quick suite, which has schemes and claims in other files.
QUICK = ("islands",)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in ON_TABLES
    ],
)
def test_variants_are_exact_on_every_table(name):
    report = on_tables(ON_TABLES[name]())
    report.raise_if_failed()
    assert sum(check.passed is True for check in report.checks) == 8


@pytest.mark.long
@pytest.mark.parametrize(
    "make", [pytest.param(samplers.dvts, marks=pytest.mark.slow), samplers.rebase]
)
def test_search_methods_keep_the_other_promises_and_say_what_was_skipped(make):
    report = check_sampler(make, targets={"peaked": peaked()}, num_runs=500)
    report.raise_if_failed()
    skipped = {c.promise for c in report.checks if c.passed is None}
    assert skipped == {"target, peaked", "pooled", "shift"}
    assert "claims no target" in str(report)


@pytest.mark.long
def test_greedy_is_judged_with_its_one_particle():
    check_sampler(samplers.greedy, num_particles=1, num_runs=2000).raise_if_failed()


# Each mutation is one mistake that a sampler's author could make.


def dropped_correction():
    good = samplers.particle_filter()

    def tell(key, state, log_potentials, log_corrections, finished):
        ignored = jnp.zeros_like(log_corrections)
        return good.tell(key, state, log_potentials, ignored, finished)

    return good._replace(tell=tell)


def wrong_ancestor():
    good = samplers.smc(schedule=samplers.every_step)

    def ask(key, state):
        state, ancestors = good.ask(key, state)
        shifted = jnp.roll(ancestors, 1)
        return state, shifted

    return good._replace(ask=ask)


def one_step_late():
    """Weighs each step by the potential of the one before."""
    good = samplers.smc(potential=samplers.product(), schedule=samplers.every_step)

    def tell(key, state, log_potentials, log_corrections, finished):
        late = jnp.where(state.t == 0, 0.0, state.log_potentials)
        told, info = good.tell(key, state, late, log_corrections, finished)
        seen = jnp.where(state.finished, state.log_potentials, log_potentials)
        return told._replace(log_potentials=seen), info

    return good._replace(tell=tell)


def weights_not_reset():
    good = samplers.particle_filter()

    def ask(key, state):
        asked, ancestors = good.ask(key, state)
        weights = state.log_weights[ancestors]
        return asked._replace(log_weights=weights, log_base=weights), ancestors

    return good._replace(ask=ask)


def tempered_without_correction():
    wrong = samplers.smc(
        potential=samplers.product(),
        schedule=samplers.every_step,
        reproduction=samplers.at_mean_weight(
            lambda key, group: samplers.systematic(
                key, 0.5 * group.log_weights, group.log_weights.shape[0]
            )
        ),
    )
    return wrong._replace(path_log_weight=samplers.product().path_log_weight)


def deterministic_resampling_that_claims_a_target():
    wrong = samplers.smc(
        resampling=samplers.top_k_replicate(2),
        potential=samplers.product(),
        schedule=samplers.every_step,
    )
    return wrong._replace(path_log_weight=samplers.product().path_log_weight)


@pytest.mark.long
@pytest.mark.parametrize(
    "mutant",
    [
        dropped_correction,
        wrong_ancestor,
        one_step_late,
        weights_not_reset,
        tempered_without_correction,
        deterministic_resampling_that_claims_a_target,
    ],
)
def test_a_wrong_target_is_caught_and_named(mutant):
    report = on_tables(mutant(), {"peaked": peaked})
    assert not report.passed
    broken = {check.promise for check in report.failures}
    assert broken & {"evidence, peaked", "posterior, peaked"}
    with pytest.raises(ConformanceError, match=r"breaks its contract.*peaked"):
        report.raise_if_failed()
    assert "BROKEN" in str(report)


def finished_particles_weighed_again():
    good = samplers.particle_filter()

    def tell(key, state, log_potentials, log_corrections, finished):
        forgotten = state._replace(finished=jnp.zeros_like(state.finished))
        return good.tell(key, forgotten, log_potentials, log_corrections, finished)

    return good._replace(tell=tell)


def nan_when_all_are_dead():
    good = samplers.particle_filter()

    def tell(key, state, log_potentials, log_corrections, finished):
        state, info = good.tell(key, state, log_potentials, log_corrections, finished)
        alive = jnp.isfinite(log_potentials).any()
        return state._replace(
            log_weights=jnp.where(alive, state.log_weights, jnp.nan)
        ), info

    return good._replace(tell=tell)


def uniform_ancestors():
    """Draws ancestors without looking at the weights, even dead ones."""
    good = samplers.particle_filter()

    def ask(key, state):
        size = state.log_weights.shape[0]
        ancestors = jax.random.randint(key, (size,), 0, size, dtype=jnp.int32)
        state, _ = good.ask(key, state)
        return state, ancestors

    return good._replace(ask=ask)


def keeps_a_counter_outside_its_state():
    """Not a function of its arguments, so a batch of it is not many of it."""
    good = samplers.particle_filter()
    calls = []

    def init(key, num_particles):
        calls.append(1)
        state = good.init(key, num_particles)
        return state._replace(log_evidence=state.log_evidence + 0.1 * len(calls))

    return good._replace(init=init)


def robustness(check, sampler):
    programs, key = Programs(sampler, 8, 500), jax.random.key(0)
    if check is driven_checks:
        return check(sampler, 8, key)
    found = check(programs, key)
    return [found] if isinstance(found, Check) else found


@pytest.mark.parametrize(
    ("mutant", "check", "promise"),
    [
        (finished_particles_weighed_again, finished_check, "finished"),
        (nan_when_all_are_dead, zero_weight_checks, "zero weights"),
        (uniform_ancestors, driven_checks, "ancestors"),
        (keeps_a_counter_outside_its_state, driven_checks, "batched"),
    ],
)
def test_a_broken_promise_is_caught_and_named(mutant, check, promise):
    checks = robustness(check, mutant())
    assert promise in {found.promise for found in checks if not found.passed}


def test_a_two_percent_bias_of_the_evidence_is_noticed():
    good = samplers.smc()

    def init(key, num_particles):
        state = good.init(key, num_particles)
        return state._replace(log_evidence=jnp.log(jnp.float32(1.02)))

    report = on_tables(good._replace(init=init), {"smooth": smooth})
    assert "evidence, smooth" in {check.promise for check in report.failures}


def test_two_particles_are_enough_to_be_exact():
    # Self-normalised posteriors would fail here: at N = 2 their bias is large.
    on_tables(samplers.smc(), num_particles=2).raise_if_failed()
