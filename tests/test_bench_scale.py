"""The bench at other scales: long and wide tables, shifts, light particles."""

from typing import Any, NamedTuple

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
    difference,
    equal_length_table,
    gain_of_paths,
    shift_checks,
    shift_table,
    total_gain,
    unequal_length_table,
)
from tsi.bench.suite import default_trials, mild_potentials
from tsi.bench.unbiasedness import MeasureTest
from tsi.experiments.proofs import quiet_mistakes
from tsi.experiments.proofs.mistakes import StateWithMemory
from tsi.samplers.parts.reproduction import Offspring, Reproduction, by_priority
from tsi.weights import ess

KEY = jax.random.key(0)
ODDS = samplers.product().path_log_weight


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


def test_what_paths_gain_is_read_off_the_path_weight():
    equal, unequal = equal_length_table(), unequal_length_table()
    assert gain_of_paths(ODDS, equal) == pytest.approx(4.0)
    assert gain_of_paths(ODDS, unequal) is None
    for potential, gain in ((samplers.telescoping(), 1.0), (samplers.uniform(), 0.0)):
        for table in (equal, unequal):
            found = gain_of_paths(potential.path_log_weight, table)
            assert found == pytest.approx(gain, abs=1e-6)
    for transform in ("reward", "softmax"):
        weight = samplers.product(transform).path_log_weight
        assert gain_of_paths(weight, equal) is None
    tempered = samplers.parallel_tempering(
        num_temperatures=2, num_sweeps=2, hottest=4.0
    )
    assert total_gain(tempered, equal) == pytest.approx(4.0 * (1 + 1 / 4))


def few_runs(sampler):
    return Programs(sampler, 8, 400)


@pytest.mark.parametrize("make", [samplers.smc, samplers.particle_filter])
def test_adding_a_number_changes_no_decision(make):
    [check] = shift_checks(few_runs(make()), KEY)
    assert check.passed, check.detail


def looks_ahead_from_zero():
    """Weighs offspring by a floor that means something at one scale only."""
    rule = by_priority(
        samplers.systematic, lambda group: jnp.logaddexp(group.log_scores, 0.0)
    )
    return samplers.smc(
        reproduction=rule, potential=samplers.product(), schedule=samplers.every_step
    )


def adds_a_constant_to_the_evidence():
    good = samplers.smc()

    def tell(key, state, potentials, *told):
        after, info = good.tell(key, state, potentials, *told)
        rounded = jnp.round(after.log_evidence * 256.0) / 256.0
        return after._replace(log_evidence=rounded), info

    return good._replace(tell=tell)


class Tilted(NamedTuple):
    """A state that shows other weights where potentials exceed a threshold."""

    inner: Any
    threshold: Any

    def __getattr__(self, name):
        return getattr(self.inner, name)

    @property
    def log_weights(self):
        tilt = 0.05 * jnp.arange(self.inner.log_weights.shape[-1])
        threshold = jnp.expand_dims(jnp.asarray(self.threshold), -1)
        large = self.inner.log_potentials > threshold
        return self.inner.log_weights + jnp.where(large, tilt, 0.0)


def shows_other_weights_above(threshold):
    good = samplers.smc()

    def ask(key, state):
        inner, ancestors = good.ask(key, state.inner)
        return Tilted(inner, threshold), ancestors

    def tell(key, state, *told):
        inner, info = good.tell(key, state.inner, *told)
        return Tilted(inner, threshold), info

    def init(key, size):
        return Tilted(good.init(key, size), threshold)

    return good._replace(init=init, ask=ask, tell=tell)


def weighs_the_finished_again():
    """Which nobody is before the end where all paths have one length."""
    good = samplers.smc()

    def tell(key, state, *told):
        after, info = good.tell(key, state, *told)
        again = jnp.sum(jnp.where(state.finished, state.log_potentials, 0.0))
        return after._replace(log_evidence=after.log_evidence + 0.01 * again), info

    return good._replace(tell=tell)


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (looks_ahead_from_zero, "decisions"),
        (lambda: shows_other_weights_above(5.0), "+10 on all log potentials changes"),
        (
            lambda: shows_other_weights_above(1e3),
            "+20000 on all log potentials changes a weight by",
        ),
        (weighs_the_finished_again, "unequal lengths: +10 on all log potentials moves"),
        (adds_a_constant_to_the_evidence, "log evidence"),
        (lambda: quiet_mistakes.potentials_in_bfloat16(samplers.smc()), "decisions"),
        (lambda: quiet_mistakes.clipped_potentials(samplers.smc()), ""),
    ],
)
def test_a_sampler_that_knows_a_scale_breaks_the_law_of_shifts(make, said):
    [check] = shift_checks(few_runs(make()), KEY)
    assert check.passed is False
    assert said in check.detail


@pytest.mark.parametrize(
    "make",
    [
        samplers.best_of_n,
        lambda: samplers.particle_filter("softmax"),
        lambda: samplers.smc(potential=samplers.telescoping("reward")),
        lambda: samplers.quest(0.5),
    ],
)
def test_weights_that_saturate_have_a_law_far_below_zero(make):
    sampler = make()
    assert total_gain(sampler, equal_length_table()) is None
    [check] = shift_checks(few_runs(sampler), KEY)
    assert check.passed, check.detail
    assert "equal lengths, -1024" in check.detail


@pytest.mark.parametrize(
    "mistake",
    [quiet_mistakes.potentials_in_bfloat16, quiet_mistakes.clipped_potentials],
)
@pytest.mark.parametrize("make", [samplers.best_of_n, samplers.weighted_best_of_n])
def test_a_mistake_far_below_zero_breaks_that_law(make, mistake):
    [check] = shift_checks(few_runs(mistake(make())), KEY)
    assert check.passed is False


def weighs_by_a_wave():
    return samplers.particle_filter(lambda log_potentials: jnp.sin(log_potentials))


@pytest.mark.parametrize("make", [weighs_by_a_wave, samplers.beam_search])
def test_where_the_law_is_void_it_says_why(make):
    [check] = shift_checks(few_runs(make()), KEY)
    assert check.passed is None
    assert "no target" in check.detail or "gain" in check.detail


def test_a_difference_of_runs_counts_decisions_weights_and_ulps():
    runs = few_runs(samplers.particle_filter())
    before, after = (
        runs.first_call(t, KEY)
        for t in (equal_length_table(), shift_table(equal_length_table(), 64.0))
    )
    states_agree = difference(before, after, 4 * 64.0)
    assert states_agree.runs == 0.0
    assert states_agree.weight < 1e-4
    assert states_agree.ulps <= 4.0
    assert difference(before, after, 4 * 64.0 + 0.01).ulps > 100.0
    moved = after.state._replace(log_weights=after.state.log_weights + 0.1)
    assert difference(before, after._replace(state=moved), 256.0).weight > 0.1
    lost = after.state._replace(log_weights=jnp.nan * after.state.log_weights)
    assert difference(before, after._replace(state=lost), 256.0).weight > 1e6
    lost = after.state._replace(log_evidence=jnp.nan * after.state.log_evidence)
    assert difference(before, after._replace(state=lost), 256.0).ulps == np.inf
    # What cancels had the size of the gain on the way, and of one at least.
    for gain, numbers in ((256.0, (-128.0, 128.00005)), (0.0, (1e-3, 1.0002e-3))):
        pair = [
            run._replace(state=run.state._replace(log_evidence=jnp.full(400, number)))
            for run, number in zip((before, after), numbers, strict=True)
        ]
        assert difference(*pair, gain).ulps < 3.0
    other = after._replace(
        particles=runs.first_call(equal_length_table(), jax.random.key(1)).particles
    )
    assert difference(before, other, 256.0).runs > 0.5


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
        assert "of what they weigh" in check.detail
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
