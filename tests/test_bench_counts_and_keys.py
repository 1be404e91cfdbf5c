"""The bench on reported counts, on keys by value, and on targets of others."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsi import samplers
from tsi.bench.conformance import checks_of, target_checks
from tsi.bench.key_uses import record_keys
from tsi.bench.key_values import equal_keys
from tsi.bench.known_truth import truth_of
from tsi.bench.reported_counts import counts_check
from tsi.bench.robustness import Programs
from tsi.errors import ConfigurationError
from tsi.experiments.proofs import quiet_mistakes
from tsi.run import run
from tsi.targets.examples import smooth

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "make",
    [
        samplers.smc,
        samplers.beam_search,
        samplers.best_of_n,
        samplers.finished_branch_smc,
    ],
)
def test_known_numbers_of_invalid_potentials_must_be_counted(make):
    assert counts_check(make(), 8, KEY).passed
    silent = counts_check(quiet_mistakes.counts_of_zero(make()), 8, KEY)
    assert silent.passed is False
    assert "num_invalid is 0 where" in silent.detail


def test_a_lost_population_must_be_counted_as_a_recovery():
    good = samplers.particle_filter()

    def tell(key, *told):
        state, info = good.tell(key, *told)
        return state, info._replace(num_recoveries=0 * info.num_recoveries)

    check = counts_check(good._replace(tell=tell), 8, KEY)
    assert check.passed is False
    assert "num_recoveries is 0" in check.detail


def test_who_counts_too_much_is_seen_as_well():
    good = samplers.particle_filter()

    def tell(key, state, potentials, corrections, finished):
        after, info = good.tell(key, state, potentials, corrections, finished)
        bad = jnp.sum(~jnp.isfinite(potentials), dtype=jnp.int32)
        return after, info._replace(num_invalid=bad)

    assert counts_check(good._replace(tell=tell), 8, KEY).passed is False


def reporting(**counts):
    """A filter whose counts are functions of its own and of what it is told."""
    good = samplers.particle_filter()

    def tell(key, state, potentials, *told):
        after, info = good.tell(key, state, potentials, *told)
        made = {n: f(getattr(info, n), potentials) for n, f in counts.items()}
        return after, info._replace(**made)

    return good._replace(tell=tell)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"num_recoveries": lambda own, told: own + 1}, "num_recoveries is 1 where"),
        (
            {"num_invalid": lambda own, told: jnp.sum(jnp.isnan(told))},
            "num_invalid is 2 where 4 particles",
        ),
        (
            {"num_invalid": lambda own, told: jnp.sum(jnp.isposinf(told))},
            "num_invalid is 2 where 4 particles",
        ),
    ],
)
def test_recoveries_from_nothing_and_half_of_the_invalid_are_seen(counts, said):
    check = counts_check(reporting(**counts), 8, KEY)
    assert check.passed is False
    assert said in check.detail


def test_counts_are_not_asked_for_where_there_are_none():
    good = samplers.particle_filter()

    def tell(key, *told):
        state, _ = good.tell(key, *told)
        return state, {}

    without = counts_check(good._replace(tell=tell), 8, KEY)
    assert without.passed is None
    assert "no num_invalid" in without.detail
    assert counts_check(samplers.self_consistency(), 8, KEY).passed is None


@pytest.mark.parametrize("make", [samplers.smc, samplers.finished_branch_smc])
def test_keys_that_are_equal_by_value_are_found(make):
    assert equal_keys(make(), 8, KEY) == ""
    said = equal_keys(quiet_mistakes.equal_keys(make()), 8, KEY)
    assert "quiet_mistakes.py" in said


def draw(key):
    return 0.0 * jax.random.normal(key, ())


def halve(key):
    return 0.0 * jax.random.key_data(jax.random.split(key))[0, 0].astype(float)


@pytest.mark.parametrize(
    ("uses", "found"),
    [
        # split(key)[1] and fold_in(key, 1) are equal.
        (lambda key, one: draw(one) + halve(jax.random.fold_in(key, 1)), True),
        (lambda key, one: halve(one) + draw(jax.random.fold_in(key, 1)), True),
        (lambda key, one: halve(one) + halve(jax.random.fold_in(key, 1)), False),
        # One key in all turns.
        (lambda key, one: draw(jax.random.key(7)), True),
    ],
)
def test_equal_keys_are_found_if_one_of_them_is_drawn_from(uses, found):
    plain = samplers.self_consistency()

    def ask(key, state):
        state, ancestors = plain.ask(key, state)
        used = uses(key, jax.random.split(key)[1])
        return state._replace(log_evidence=state.log_evidence + used), ancestors

    assert bool(equal_keys(plain._replace(ask=ask), 4, KEY)) is found


def spend(function, *arguments):
    """Keys that a function spends: data, and whether on a draw."""
    found = []

    def note(place, draws, data):
        rows = np.asarray(data).reshape(-1, 2)
        found.extend((tuple(row), draws) for row in rows.tolist())

    result = record_keys(function, set(), note)(*arguments)
    jax.block_until_ready(result)
    jax.effects_barrier()
    return result, found


def data_of(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_draws_are_recorded_in_loops_branches_and_maps():
    def draw(key, flag):
        def body(carry):
            i, total = carry
            return i + 1, total + jax.random.normal(jax.random.fold_in(key, i))

        _, total = jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, 0.0))
        # Not of the key itself, whose splits are what is folded in above.
        rows = jax.lax.map(
            jax.random.normal, jax.random.split(jax.random.fold_in(key, 8))
        )
        one = jax.lax.cond(
            flag,
            lambda k: jax.random.uniform(jax.random.fold_in(k, 10)),
            lambda k: jax.random.uniform(jax.random.fold_in(k, 11)),
            key,
        )
        many = jax.vmap(jax.random.uniform)(
            jax.random.split(jax.random.fold_in(key, 9))
        )
        return total, rows, one, many

    result, found = spend(draw, KEY, True)
    plain = jax.jit(draw)(KEY, True)
    for ours, theirs in zip(result, plain, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    fold = jax.random.fold_in
    drawn = {data for data, is_draw in found if is_draw}
    assert drawn == {
        *(data_of(fold(KEY, i)) for i in (0, 1, 2, 10)),
        *map(data_of, jax.random.split(fold(KEY, 8))),
        *map(data_of, jax.random.split(fold(KEY, 9))),
    }
    split = {data for data, is_draw in found if not is_draw}
    assert split == {data_of(fold(KEY, 8)), data_of(fold(KEY, 9))}


class Coins(NamedTuple):
    heads: Any
    tossed: Any


class FairCoins:
    """Three tosses; log potential 0.4 after heads and -0.3 after tails."""

    max_steps = 3

    def init(self, key, num_particles, params=None):
        zeros = jnp.zeros(num_particles, jnp.int32)
        return Coins(jnp.zeros((num_particles, 3), bool), zeros)

    def propose(self, key, t, particles, params=None):
        slots = jnp.arange(particles.tossed.size)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(slots)
        tossed = jax.vmap(jax.random.bernoulli)(keys)
        heads = particles.heads.at[slots, particles.tossed].set(tossed, mode="drop")
        over = self.finished(particles)
        return Coins(heads, particles.tossed + ~over), jnp.zeros(slots.size)

    def log_potential(self, t, particles, params=None):
        slots = jnp.arange(particles.tossed.size)
        return jnp.where(particles.heads[slots, particles.tossed - 1], 0.4, -0.3)

    def finished(self, particles):
        return particles.tossed >= 3

    def gather(self, particles, ancestors):
        return jax.tree.map(lambda leaf: leaf[ancestors], particles)

    off_by = 0.0

    def truth(self, path_log_weight):
        paths = np.array(np.meshgrid(*[[False, True]] * 3)).reshape(3, -1).T
        told = jnp.where(paths, 0.4, -0.3)
        weights = np.exp(np.asarray(path_log_weight(told, jnp.ones((8, 3), bool))))
        posterior = weights / weights.sum()
        means = [posterior @ paths[:, -1], posterior @ paths.sum(1)]
        return SimpleNamespace(
            log_evidence=np.log(weights.mean()) + self.off_by,
            features=lambda coins: np.stack(
                [coins.heads[..., -1], np.sum(coins.heads, axis=-1)], axis=-1
            ),
            means=np.array(means),
        )


class WrongTruth(FairCoins):
    off_by = 0.05


class WrongMeans(FairCoins):
    def truth(self, path_log_weight):
        known = super().truth(path_log_weight)
        known.means = known.means * np.array([1.05, 1.0])
        return known


@pytest.mark.parametrize(
    ("make", "broken"),
    [(FairCoins, None), (WrongTruth, "evidence"), (WrongMeans, "posterior")],
)
def test_samplers_are_judged_on_anybodys_target(make, broken):
    sampler, target = samplers.particle_filter(), make()
    result = Programs(sampler, 4, 8_000)(target, KEY)
    checks = {c.promise: c.passed for c in target_checks("x", target, sampler, result)}
    expected = {"evidence, x": broken != "evidence", "posterior, x": broken is None}
    if broken == "evidence":
        # Every mean is taken against the evidence.
        expected["posterior, x"] = False
    assert checks == expected


def test_a_target_without_a_truth_is_refused_with_a_sentence():
    class Bare:
        max_steps = 3

    with pytest.raises(ConfigurationError, match="Bare has no truth"):
        truth_of(Bare(), samplers.product().path_log_weight)
    assert truth_of(FairCoins(), samplers.product().path_log_weight, 2.0) is None


def test_a_truth_without_features_judges_the_evidence_alone():
    class Short(FairCoins):
        def truth(self, path_log_weight):
            return SimpleNamespace(
                log_evidence=super().truth(path_log_weight).log_evidence
            )

    sampler, target = samplers.smc(), Short()
    result = Programs(sampler, 4, 2_000)(target, KEY)
    [check] = target_checks("x", target, sampler, result)
    assert check.passed
    assert check.promise == "evidence, x"


def test_runs_of_several_calls_are_those_of_their_keys():
    whole = Programs(samplers.smc(), 4, 4_001)(smooth(), KEY)
    few = Programs(samplers.smc(), 4, 4_001).first_call(smooth(), KEY)
    assert whole.state.log_evidence.shape == (4_001,)
    # Two thousand at most are run at once, and each key gives its own run.
    size = few.state.log_evidence.shape[0]
    assert size <= 2_000
    np.testing.assert_array_equal(
        whole.state.log_evidence[:size], few.state.log_evidence
    )
    key = jax.random.split(KEY, 4_001)[4_000]
    last = run(samplers.smc(), smooth(), key, 4).state.log_evidence
    np.testing.assert_allclose(whole.state.log_evidence[-1], last, rtol=1e-6)


def test_promises_may_be_looked_at_in_another_order():
    silent = quiet_mistakes.counts_of_zero(samplers.smc())
    first = next(iter(checks_of(silent, first=("counts",), num_runs=100)))
    assert first.promise == "counts"
    assert first.passed is False
