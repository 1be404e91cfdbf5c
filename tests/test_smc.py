"""SMC: dead weights, invalid numbers, islands, tempering, settings that fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tsi
from tsi import samplers
from tsi.errors import ConfigurationError, UnknownNameError
from tsi.ess import ess
from tsi.samplers.parts.potentials import odds, reward, softmax
from tsi.samplers.parts.reproduction import by_priority
from tsi.targets import examples as tabular_examples
from tsi.weights import log_mean_exp

KEY = jax.random.key(0)
NOT_FINISHED = jnp.zeros(4, bool)
ZEROS = jnp.zeros(4)
DEAD = jnp.full(4, -jnp.inf)


def drive(sampler, potentials, corrections=None, finished=None):
    """Tell a list of potentials [T][N]; the last state and the infos."""
    state, infos = sampler.init(KEY, len(potentials[0])), []
    for t, told in enumerate(potentials):
        told = jnp.asarray(told, jnp.float32)
        state, _ = sampler.ask(jax.random.fold_in(KEY, t), state)
        state, info = sampler.tell(
            KEY,
            state,
            told,
            jnp.zeros_like(told) if corrections is None else corrections[t],
            jnp.zeros(told.shape, bool) if finished is None else finished[t],
        )
        infos.append(info)
    return state, infos


def never(potential):
    return samplers.smc(schedule=samplers.never, potential=potential)


def test_transforms_are_the_named_weights():
    r = np.array([0.1, 0.5, 0.9], np.float32)
    logit = jnp.log(r / (1 - r))
    np.testing.assert_allclose(np.exp(odds(logit)), r / (1 - r), rtol=1e-5)
    np.testing.assert_allclose(np.exp(reward(logit)), r, rtol=1e-5)
    np.testing.assert_allclose(np.exp(softmax(logit)), np.exp(r), rtol=1e-5)
    for transform in (odds, reward, softmax):
        assert float(transform(jnp.float32(-np.inf))) == -np.inf
    with pytest.raises(UnknownNameError, match="odds, reward, softmax"):
        samplers.particle_filter("logits")


def test_infos_tell_the_log_potentials_of_their_step():
    told = [[0.1, 0.2, np.nan, 0.4], [1.1, np.nan, 1.3, 1.4]]
    ended = jnp.array([[False, True, False, False], [True, True, True, True]])
    _, (first, second) = drive(never(samplers.product()), told, finished=ended)
    np.testing.assert_allclose(first.log_potentials, [0.1, 0.2, -np.inf, 0.4])
    np.testing.assert_allclose(second.log_potentials, [1.1, 0.2, 1.3, 1.4])


def test_weights_have_mean_one_and_the_evidence_holds_what_was_taken_out():
    told = np.log([[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 1.0, 3.0]])
    corrections = jnp.log(jnp.array([[1.0, 1.0, 2.0, 1.0], [0.5, 1.0, 1.0, 1.0]]))
    state, _ = drive(never(samplers.product()), told, corrections)
    raw = np.exp(told.sum(0) + np.asarray(corrections).sum(0))
    np.testing.assert_allclose(np.exp(state.log_weights), raw / raw.mean(), rtol=1e-5)
    np.testing.assert_allclose(np.exp(state.log_evidence), raw.mean(), rtol=1e-5)
    state, _ = drive(never(samplers.telescoping()), told, corrections)
    raw = np.exp(told[1] + np.asarray(corrections).sum(0))
    np.testing.assert_allclose(np.exp(state.log_weights), raw / raw.mean(), rtol=1e-5)
    np.testing.assert_allclose(np.exp(state.log_evidence), raw.mean(), rtol=1e-5)


def test_a_finished_particle_keeps_its_last_score():
    told = [np.log([1.0, 2.0, 3.0, 4.0]), np.array([np.nan, 9.0, 0.0, 0.0])]
    finished = [jnp.array([True, True, False, False])] * 2
    wild = [ZEROS, jnp.array([jnp.nan, 5.0, 0.0, 0.0])]
    for potential in (samplers.product(), samplers.telescoping(), samplers.latest()):
        state, infos = drive(never(potential), told, wild, finished)
        assert int(infos[1].num_invalid) == 0
        np.testing.assert_allclose(state.log_potentials[:2], told[0][:2], rtol=1e-6)
        ratio = float(state.log_weights[1] - state.log_weights[0])
        np.testing.assert_allclose(ratio, np.log(2.0), rtol=1e-5)


@pytest.mark.parametrize("potential", [samplers.product, samplers.telescoping])
@pytest.mark.parametrize("schedule", [samplers.every_step, samplers.never])
def test_after_all_weights_are_zero_particles_go_on_with_equal_weights(
    potential, schedule
):
    sampler = samplers.smc(potential=potential(), schedule=schedule)
    state, infos = drive(sampler, [np.log([1.0, 2.0, 3.0, 4.0]), DEAD])
    np.testing.assert_array_equal(state.log_weights, ZEROS)
    assert float(state.log_evidence) == -np.inf
    assert [int(info.num_recoveries) for info in infos] == [0, 1]
    assert float(infos[1].ess) == 0.0
    # The next question keeps every particle in its place, and the ratio restarts.
    asked, ancestors = sampler.ask(KEY, state)
    np.testing.assert_array_equal(ancestors, np.arange(4))
    told = jnp.log(jnp.array([1.0, 1.0, 2.0, 4.0]))
    state, info = sampler.tell(KEY, asked, told, ZEROS, NOT_FINISHED)
    np.testing.assert_allclose(np.exp(state.log_weights), [0.5, 0.5, 1, 2], rtol=1e-5)
    assert float(state.log_evidence) == -np.inf
    assert int(info.num_recoveries) == 0


def test_best_of_n_looks_at_the_last_score_even_after_zeros_everywhere():
    told = [DEAD, np.log([1.0, 2.0, 3.0, 4.0])]
    state, _ = drive(never(samplers.terminal("odds")), told)
    np.testing.assert_allclose(np.exp(state.log_weights), [0.4, 0.8, 1.2, 1.6], 1e-5)
    np.testing.assert_allclose(np.exp(state.log_evidence), 2.5, rtol=1e-5)


def test_a_zero_kills_for_good_under_telescoping():
    told = [[-np.inf, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
    state, _ = drive(never(samplers.telescoping()), told)
    assert float(state.log_weights[0]) == -np.inf
    path = jnp.array([[-jnp.inf, 3.0]])
    weight = samplers.telescoping().path_log_weight(path, jnp.ones((1, 2), bool))
    assert float(weight[0]) == -np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_invalid_potentials_and_corrections_weigh_nothing_and_are_counted(bad):
    for told, corrections in (
        ([0.0, bad, 0.0, 0.0], ZEROS),
        ([0.0, 0.0, 0.0, 0.0], ZEROS.at[1].set(bad)),
    ):
        for potential in (samplers.product(), samplers.telescoping()):
            state, infos = drive(
                never(potential), [told, np.zeros(4)], [corrections] * 2
            )
            assert int(infos[0].num_invalid) == 1
            assert float(state.log_weights[1]) == -np.inf
            assert not np.isnan(np.asarray(state.log_weights)).any()
            np.testing.assert_allclose(np.exp(state.log_evidence), 0.75, rtol=1e-5)


def test_a_sampler_that_looks_at_no_score_is_not_hurt_by_nan():
    state, infos = drive(samplers.self_consistency(), [[0.0, np.nan, 0.0, 0.0]])
    np.testing.assert_array_equal(state.log_weights, ZEROS)
    assert int(infos[0].num_invalid) == 1


def test_a_dead_island_among_live_ones_keeps_weight_zero_and_its_places():
    sampler = samplers.smc(
        potential=samplers.product(), schedule=samplers.every_step, num_islands=2
    )
    first = [-np.inf, -np.inf, 0.0, 1.0]
    state, infos = drive(sampler, [first, np.zeros(4), np.zeros(4)])
    np.testing.assert_array_equal(state.log_weights[:2], [-np.inf, -np.inf])
    np.testing.assert_array_equal(state.ancestors[:2], [0, 1])
    assert [int(info.num_recoveries) for info in infos] == [1, 0, 0]
    expected = (1.0 + np.e) / 4.0
    np.testing.assert_allclose(np.exp(state.log_evidence), expected, rtol=1e-5)


def test_islands_resample_by_their_own_ess_and_carry_their_mean_weight():
    sampler = samplers.smc(
        potential=samplers.product(), schedule=samplers.ess_below(0.6), num_islands=2
    )
    state = sampler.init(KEY, 8)
    state, _ = sampler.ask(KEY, state)
    told = jnp.array([9.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    state, _ = sampler.tell(KEY, state, told, jnp.zeros(8), jnp.zeros(8, bool))
    before = np.asarray(state.log_weights)
    asked, ancestors = sampler.ask(KEY, state)
    np.testing.assert_array_equal(asked.resampled, [True, False])
    np.testing.assert_array_equal(ancestors, [0, 0, 0, 0, 4, 5, 6, 7])
    mean = float(log_mean_exp(jnp.asarray(before[:4])))
    np.testing.assert_allclose(asked.log_weights[:4], mean, rtol=1e-5)
    np.testing.assert_array_equal(asked.log_weights[4:], before[4:])


def test_offspring_drawn_by_tempered_weights_carry_the_rest():
    sampler = samplers.smc(
        potential=samplers.product(),
        schedule=samplers.every_step,
        reproduction=by_priority(
            samplers.systematic, lambda group: 0.5 * group.log_weights
        ),
    )
    raw = np.array([1.0, 4.0, 9.0, 16.0])
    state, _ = drive(sampler, [np.log(raw)])
    asked, ancestors = sampler.ask(jax.random.key(3), state)
    w = raw / raw.mean()
    v = np.sqrt(w)
    expected = v.mean() * w[ancestors] / v[ancestors]
    np.testing.assert_allclose(np.exp(asked.log_weights), expected, rtol=1e-5)


def test_the_entropic_filter_flattens_only_collapsing_weights_early_on():
    def resampling_ess(told, t, **settings):
        sampler = samplers.entropic_particle_filter(max_steps=10, **settings)
        state, _ = drive(sampler, [told])
        state = state._replace(t=jnp.asarray(t, jnp.int32))
        asked, _ = sampler.ask(KEY, state)
        # w / v of the children tells what they were drawn by.
        return float(ess(state.log_weights)), np.asarray(asked.log_weights)

    sharp = np.array([6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    size, weights = resampling_ess(sharp, 1)
    heat = max(1.0, 8.0 / size * 0.9)
    w = np.exp(sharp) / np.exp(sharp).mean()
    v = w ** (1.0 / heat)
    values = np.sort(np.unique(v.mean() * w / v))
    assert size < 4
    assert heat > 1.5
    for weight in np.exp(weights):
        assert np.abs(values - weight).min() < 1e-3 * weight
    # Late, or with healthy weights, it is the particle filter: equal offspring.
    for told, t in ((sharp, 5), (sharp / 10, 1)):
        _, weights = resampling_ess(told, t)
        np.testing.assert_allclose(weights, 0.0, atol=1e-5)
    _, weights = resampling_ess(sharp, 1, variant="released")
    np.testing.assert_allclose(weights, 0.0, atol=1e-5)


def test_ess_triggers_resampling():
    sampler = samplers.smc(
        potential=samplers.product(), schedule=samplers.ess_below(0.5)
    )
    _, infos = drive(sampler, [[0.0, 0.1, 0.0, 0.0]] * 3)
    assert not any(bool(info.resampled) for info in infos)
    _, infos = drive(sampler, [[9.0, 0.0, 0.0, 0.0]] * 2)
    assert [bool(info.resampled) for info in infos] == [False, True]


def test_search_methods_claim_no_target_and_others_do():
    claims = {
        True: [
            samplers.smc(),
            samplers.particle_filter("softmax"),
            samplers.best_of_n(),
            samplers.weighted_best_of_n(),
            samplers.self_consistency(),
            samplers.greedy(),
            samplers.entropic_particle_filter(),
            samplers.entropic_particle_filter(variant="normalised_entropy"),
        ],
        False: [
            samplers.beam_search(),
            samplers.dvts(),
            samplers.rebase(),
            samplers.entropic_particle_filter(variant="released"),
            samplers.particle_filter(variant="released"),
            samplers.particle_filter(variant="printed"),
            samplers.smc(
                resampling=samplers.top_k_replicate(2), potential=samplers.product()
            ),
        ],
    }
    for claimed, group in claims.items():
        for sampler in group:
            assert (sampler.path_log_weight is not None) == claimed


@pytest.mark.parametrize(
    "make",
    [lambda: samplers.beam_search(2), samplers.rebase, samplers.smc, samplers.dvts],
)
def test_recovery_inside_a_run_never_gives_nan(make):
    sampler, shape = make(), tabular_examples.smooth()
    program = jax.jit(lambda params: tsi.run(sampler, shape, KEY, 4, params))
    for make_target in tabular_examples.EXAMPLES.values():
        for step in (0, 2):
            for value in (-np.inf, np.nan):
                target = make_target()
                target.log_potentials[step] = value
                run = program(target.params)
                infos = run.infos
                if sampler.path_log_weight is None:
                    # A size that ranks do not have.
                    assert np.isnan(infos.ess).all()
                    infos = infos._replace(ess=0.0)
                for leaf in jax.tree.leaves((run.state, infos)):
                    assert not np.isnan(np.asarray(leaf)).any()
                if sampler.path_log_weight is not None and step == 0:
                    assert float(run.state.log_evidence) == -np.inf
                    assert int(run.infos.num_recoveries.sum()) > 0


@pytest.mark.parametrize(
    ("attempt", "complaint"),
    [
        (lambda: samplers.beam_search(4).init(KEY, 6), "width must divide"),
        (lambda: samplers.dvts(4).init(KEY, 6), "width must divide"),
        (lambda: samplers.beam_search(0).init(KEY, 6), "at least one"),
        (lambda: samplers.smc(num_islands=4).init(KEY, 6), "4 islands of equal size"),
        (lambda: samplers.smc(num_islands=0).init(KEY, 6), "0 islands"),
        (lambda: samplers.greedy().init(KEY, 2), "one particle, not 2"),
        (lambda: samplers.ess_below(1.5), r"in \[0, 1\]"),
        (lambda: samplers.rebase(0.0), "must be positive"),
        (lambda: samplers.smc(potential=samplers.terminal()), "schedule=never"),
        (lambda: samplers.entropic_particle_filter(max_steps=0), "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_sentences(attempt, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        attempt()


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"corrected, .*released"):
        samplers.entropic_particle_filter(variant="exact")


@pytest.mark.long
def test_every_method_runs_with_a_single_particle():
    target = tabular_examples.unequal_lengths()
    for make in (
        samplers.smc,
        samplers.beam_search,
        samplers.dvts,
        samplers.rebase,
        samplers.particle_filter,
        samplers.entropic_particle_filter,
        samplers.best_of_n,
    ):
        run = tsi.run(make(), target, KEY, 1)
        np.testing.assert_array_equal(run.particles.finished, [True])
        np.testing.assert_array_equal(run.state.log_weights, [0.0])
