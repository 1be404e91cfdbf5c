"""The bench at other scales: long and wide tables, and light particles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi import samplers
from tsi.bench.conformance import pooled_check, target_checks
from tsi.bench.far_below import (
    judge_light_particles,
    range_check,
    resolution_check,
)
from tsi.bench.long_tables import LONG_EXAMPLES, wide_table
from tsi.bench.offspring import Draws
from tsi.bench.permutation import permutation_check
from tsi.bench.pooled import pooled_p, pooled_z
from tsi.bench.robustness import Programs
from tsi.bench.shift_law import (
    shift_checks,
)
from tsi.bench.suite import default_trials, mild_potentials
from tsi.bench.unbiasedness import MeasureTest
from tsi.ess import ess
from tsi.experiments.proofs import quiet_mistakes
from tsi.experiments.proofs.mistakes import StateWithMemory
from tsi.samplers.parts.reproduction import Offspring, Reproduction, by_priority

KEY = jax.random.key(0)


def test_the_long_tables_are_long_and_wide_and_not_ruled_by_rare_paths():
    for make in LONG_EXAMPLES.values():
        target = make()
        assert target.max_steps >= 9
        for potential in (samplers.product(), samplers.telescoping()):
            truth = target.truth(potential.path_log_weight)
            prior = np.exp(truth.log_prob)
            # Paths that outweigh the policy's own share of them.
            dominate = truth.posterior > prior
            assert prior[dominate].sum() > 0.05
            # One rollout is no worse than this, and a mean of thousands is normal.
            assert np.sum(truth.posterior**2 / prior) < 15.0
    scores = wide_table().log_potentials
    assert scores.max() > 55.0
    assert scores.min() == -60.0


def test_several_numbers_of_particles_are_tried_where_a_sampler_takes_them():
    def sizes(sampler, num_particles):
        trials = default_trials(sampler, num_particles)
        return {trial.num_particles for trial in trials}

    assert sizes(samplers.smc(), 8) == {2, 8, 16}
    assert sizes(samplers.smc(num_islands=4), 8) == {4, 8, 16}
    assert sizes(samplers.greedy(), 1) == {1}
    # A sweep of one particle moves nothing, so eight is the least.
    assert sizes(samplers.particle_gibbs(), 8) == {8, 16}


@pytest.mark.long
def test_weights_that_are_wrong_late_show_on_a_long_table():
    good = samplers.particle_filter()
    late = quiet_mistakes.weights_not_reset_from_step_5(good)
    for sampler, passed in ((good, True), (late, False)):
        target = LONG_EXAMPLES["long"]()
        result = Programs(sampler, 16, 8_000)(target, KEY)
        checks = target_checks("long", target, sampler, result)
        assert all(check.passed for check in checks) is passed


def dropping(gap):
    """Keeps all particles, except those that lie further below the largest."""

    def draw(key, group):
        weights = group.log_weights
        places = jnp.arange(weights.size, dtype=jnp.int32)
        lost = weights < weights.max() - gap
        best = jnp.argmax(weights).astype(jnp.int32)
        return Offspring(
            jnp.where(lost, best, places), jnp.where(lost, -jnp.inf, weights)
        )

    return samplers.smc(
        reproduction=Reproduction(draw, exact=True), schedule=samplers.every_step
    )


def test_a_particle_may_not_be_lost_for_lying_far_below():
    for sampler, passed in (
        (dropping(60.0), False),
        (dropping(300.0), True),
        (samplers.particle_filter(), True),
    ):
        check = range_check(sampler, Draws(sampler, 8, 500), 8, KEY)
        assert check.passed is passed


def test_what_light_particles_keep_and_who_of_them_is_drawn_is_judged():
    numbers, sampler = np.random.default_rng(0), samplers.smc()
    drawn = numbers.random((256, 2**14)) < 2**-14
    weight = drawn.sum(1).astype(float)
    assert judge_light_particles(sampler, weight, drawn).passed
    # Half of the weight is lost, by chance and then for certain.
    for halved in (numbers.binomial(drawn.sum(1), 0.5), np.full(256, 0.5)):
        check = judge_light_particles(sampler, halved.astype(float), drawn)
        assert check.passed is False
        assert "of their weight" in check.detail
    # As many draws, but of the same 64.
    few = np.zeros_like(drawn)
    few[np.arange(256), numbers.integers(0, 64, 256)] = True
    check = judge_light_particles(sampler, np.ones(256), few)
    assert check.passed is False
    assert "the same few are drawn again" in check.detail


def keeps_light_particles(sampler):
    return resolution_check(sampler, KEY).passed


@pytest.mark.slow
def test_light_particles_keep_their_weight_and_each_has_its_chance():
    good = samplers.smc()
    assert keeps_light_particles(good)
    naive = samplers.smc(resampling=quiet_mistakes.naive_sum)
    assert keeps_light_particles(naive) is False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multinomial", "stratified", "residual", "ssp"])
def test_every_scheme_resolves_light_particles(name):
    sampler = samplers.smc(resampling=getattr(samplers, name))
    assert keeps_light_particles(sampler)


def test_finished_particles_are_not_chosen_by_their_places():
    good = samplers.particle_filter()

    def ask(key, state):
        # Whoever draws a finished particle gets the first of them.
        after, ancestors = good.ask(key, state)
        first = jnp.argmax(state.finished).astype(jnp.int32)
        return after, jnp.where(state.finished[ancestors], first, ancestors)

    assert permutation_check(good, 8, KEY).passed
    check = permutation_check(good._replace(ask=ask), 8, KEY)
    assert check.passed is False
    assert "finished" in check.detail


def measure_test(error, standard_error=0.004, p_value=0.5):
    z = error / standard_error
    return MeasureTest(1.0 + error, 0.0, standard_error, z, p_value, 10)


def test_a_bias_of_one_percent_is_seen_on_all_targets_together():
    biased = [measure_test(0.01, s) for s in (0.003, 0.004, 0.005, 0.006)]
    assert all(abs(test.z) < 4.0 for test in biased)
    error, z = pooled_z(biased)
    assert error == pytest.approx(0.01)
    assert z > 4.0
    assert pooled_check(biased).passed is False
    assert pooled_check(
        [measure_test(0.0), measure_test(0.003), measure_test(-0.002)]
    ).passed
    # Errors of either sign cancel in the mean, and not in the chi-square.
    either = [measure_test(0.013 * sign) for sign in (1, -1, 1, -1)]
    assert abs(pooled_z(either)[1]) < 1.0
    assert pooled_p(either) < 1e-4
    assert pooled_p([measure_test(0.001, p_value=2e-3)] * 4) < 1e-4
    exact = MeasureTest(1.0, 0.0, 0.0, 0.0, 1.0, 0)
    assert pooled_z([exact, exact]) == (0.0, 0.0)
    assert pooled_p([exact, exact]) == 1.0


@pytest.mark.long
def test_one_percent_is_seen_where_the_evidence_is_that_of_one_rollout():
    good = samplers.suffix_metropolis(samplers.product())
    wrong = quiet_mistakes.evidence_one_percent_off(good)
    for explorer, passed in ((good, True), (wrong, False)):
        result = Programs(explorer, 4, 20_000)(mild_potentials(), KEY)
        checks = target_checks("mild", mild_potentials(), explorer, result)
        assert all(check.passed for check in checks) is passed


def decides_by_stale_weights():
    """Whether to draw is decided by the weights of the step before: legal."""
    good = samplers.particle_filter()

    def init(key, num_particles):
        return StateWithMemory(good.init(key, num_particles), jnp.zeros((), bool))

    def ask(key, state):
        places = jnp.arange(state.log_weights.size, dtype=jnp.int32)
        stay = state.inner._replace(ancestors=places, resampled=jnp.zeros(1, bool))
        inner, ancestors = jax.tree.map(
            lambda a, b: jnp.where(state.memory, a, b),
            good.ask(key, state.inner),
            (stay, places),
        )
        return StateWithMemory(inner, state.memory), ancestors

    def tell(key, state, *told):
        due = ess(state.log_weights) < 0.9 * state.log_weights.size
        inner, info = good.tell(key, state.inner, *told)
        return StateWithMemory(inner, due), info

    return good._replace(init=init, ask=ask, tell=tell)


def flatter_for_more_particles():
    """Draws by a power of the weights that depends on N, which is legal."""
    rule = by_priority(
        samplers.systematic,
        lambda group: group.log_weights / jnp.log(1.0 + group.log_weights.size),
    )
    return samplers.smc(
        reproduction=rule, potential=samplers.product(), schedule=samplers.every_step
    )


@pytest.mark.long
@pytest.mark.parametrize("make", [decides_by_stale_weights, flatter_for_more_particles])
def test_what_is_legal_is_no_mistake(make):
    sampler = make()
    programs = Programs(sampler, 8, 2_000)
    checks = shift_checks(programs, KEY)
    checks.append(range_check(sampler, Draws(sampler, 8, 500), 8, KEY))
    checks += target_checks("wide", wide_table(), sampler, programs(wide_table(), KEY))
    assert [check for check in checks if check.passed is not True] == []
