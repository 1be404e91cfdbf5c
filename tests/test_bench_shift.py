"""The bench's law of shifts: what it allows, what breaks it, and where it is void."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi import samplers
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
from tsi.experiments.proofs import quiet_mistakes
from tsi.samplers.parts.reproduction import by_priority

KEY = jax.random.key(0)
ODDS = samplers.product().path_log_weight


def test_what_paths_gain_is_computed_from_the_path_weight():
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
        num_temperatures=2, num_sweeps=2, max_temperature=4.0
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


def test_runs_that_report_other_ancestors_have_made_other_decisions():
    runs = few_runs(samplers.particle_filter())
    before = runs.first_call(equal_length_table(), KEY)
    moved = before.infos._replace(ancestors=before.infos.ancestors.at[:100].add(1))
    # Other weights come with the other decisions, and are not compared.
    other = before.state.log_weights.at[:100].add(1.0)
    after = before._replace(infos=moved, state=before.state._replace(log_weights=other))
    found = difference(before, after, 0.0)
    assert found.runs == pytest.approx(100 / 400)
    assert found.weight == 0.0
