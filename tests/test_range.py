"""Nothing that has weight is lost for lying far below the largest; nothing has two
meanings for what is no weight."""

import functools
import inspect

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import tsi
import tsi.rewards
from tsi import samplers
from tsi.errors import ConfigurationError, InvalidWeightWarning, UnknownNameError
from tsi.rewards.host_reward import Prefix
from tsi.rewards.reward_scale import CERTAIN, log_odds_of
from tsi.rewards.text_reward import TextReward
from tsi.rewards.verifier import Verifier
from tsi.samplers.conditional_smc import conditional_systematic
from tsi.samplers.parts.optimal_resampling import optimal_resampling
from tsi.targets.examples import smooth
from tsi.targets.tabular import TabularTarget
from tsi.twists.exact import exact_log_twist, with_twisted_proposal
from tsi.weights import CompensatedSum

KEYS = jax.random.split(jax.random.key(0), 4_000)


@pytest.mark.parametrize("gap", [20.0, 120.0, 5_000.0])
def test_optimal_resampling_keeps_all_that_have_weight_if_there_is_room(gap):
    log_weights = jnp.array([0.0, -gap, -jnp.inf, -jnp.inf])
    kept, new = optimal_resampling(jax.random.key(0), log_weights, 2)
    assert kept.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(new, log_weights)


@pytest.mark.parametrize("gap", [0.0, 120.0])
def test_places_left_by_one_giant_are_shared_by_the_others_weights(gap):
    small = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray([gap + 3.0, *np.log(small)], jnp.float32)
    draw = jax.jit(jax.vmap(lambda key: optimal_resampling(key, log_weights, 3)))
    kept, new = map(np.asarray, draw(KEYS))
    assert (kept.sum(1) == 3).all()
    assert kept[:, 0].all()
    assert not kept[:, 5].any()
    # The mean new weight of each is its old one.
    mean = np.exp(new[:, 1:].astype(np.float64)).mean(0)
    error = np.exp(new[:, 1:].astype(np.float64)).std(0) / np.sqrt(len(KEYS))
    assert (np.abs(mean - small) <= 4.0 * error + 1e-5).all()


def recovering(height):
    """Two prefixes, one at log-odds -h that ends at 2, and one at h that ends at 1."""
    return TabularTarget(
        initial=[0.5, 0.5],
        transition=[[0.5, 0.5], [0.5, 0.5]],
        log_potentials=[[-height, height], [np.log(2.0), 0.0]],
    )


def test_steering_keeps_a_prefix_that_is_hopeless_now_and_recovers_later():
    sampler, tables = samplers.smc_steering(1), recovering(0.0).params

    @jax.jit
    @jax.vmap
    def run(key, height):
        scores = jnp.stack([jnp.stack([-height, height]), tables.log_potentials[1]])
        params = tables._replace(log_potentials=scores)
        return tsi.run(sampler, recovering(0.0), key, 2, params)

    # Nothing is resampled: two thirds of the mass are on the prefix that recovers.
    for height in (5.0, 70.0, 500.0):
        target = recovering(height)
        truth = np.exp(target.truth(sampler.path_log_weight).log_evidence)
        runs = run(KEYS, jnp.full(len(KEYS), height))
        estimates = np.exp(np.asarray(runs.state.log_evidence, np.float64))
        error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - truth) < 4.0 * error < 0.03 * truth


def test_a_reference_of_hardly_any_weight_keeps_the_law_of_the_others():
    log_weights = jnp.log(jnp.asarray([1e-30, 0.45, 0.35, 0.2]))
    yes = jnp.ones((), bool)
    draw = jax.vmap(lambda key: conditional_systematic(key, log_weights, yes))
    drawn = np.asarray(jax.jit(draw)(KEYS))
    assert (drawn[:, 0] == 0).all()
    counts = np.stack([(drawn == i).sum(1) for i in range(4)], 1)
    # The grid starts at the reference: 0, 1/4, 1/2, 3/4 of the circle.
    np.testing.assert_array_equal(np.unique(counts, axis=0), [[1, 1, 2, 0]])


@pytest.mark.parametrize("shift", [-20_000.0, 300.0, 20_000.0])
def test_exact_twists_have_any_scale(shift):
    plain, shifted = smooth(), smooth()
    shifted.log_potentials = shifted.log_potentials + shift
    left = plain.max_steps - 1 - np.arange(plain.max_steps)[:, None]
    np.testing.assert_allclose(
        exact_log_twist(shifted), exact_log_twist(plain) + shift * left, atol=1e-9
    )
    np.testing.assert_allclose(
        with_twisted_proposal(shifted).proposal_transition,
        with_twisted_proposal(plain).proposal_transition,
        atol=1e-9,
    )


def test_long_sums_keep_what_float32_cuts_off():
    terms = np.random.default_rng(0).normal(300.0, 7.0, 400).astype(np.float32)
    add = jax.jit(lambda total, term: total.add(term))
    total = CompensatedSum(jnp.float32(0.0), jnp.float32(0.0))
    for term in terms:
        total = add(total, term)
    exact = terms.astype(np.float64).sum()
    assert float(total.value) == np.float32(exact)
    assert float(total.value) + float(total.rest) == pytest.approx(exact, abs=1e-3)
    dead = total.add(jnp.float32(-jnp.inf)).add(jnp.float32(3.0))
    assert float(dead.value) == -np.inf
    assert float(dead.rest) == 0.0


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize(
    "make", [samplers.product, samplers.telescoping, samplers.terminal]
)
@pytest.mark.parametrize("transform", ["odds", "reward", "softmax"])
def test_what_is_no_weight_makes_a_path_impossible_in_the_target(make, transform, odd):
    log_potentials = jnp.array([[0.3, 0.1, odd], [0.3, odd, 0.1], [0.3, 0.1, 0.2]])
    live = jnp.array([[True] * 3, [True, True, False], [True] * 3])
    weights = np.asarray(make(transform).path_log_weight(log_potentials, live))
    assert (weights[:2] == -np.inf).all()
    assert np.isfinite(weights[2])


@pytest.mark.long
@pytest.mark.parametrize(
    "make",
    [
        samplers.smc,
        samplers.best_of_n,
        samplers.particle_gibbs,
        samplers.auxiliary_particle_filter,
    ],
)
def test_samplers_agree_with_their_targets_on_what_is_no_weight(make):
    sampler = make()

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def run(key, params):
        return tsi.run(sampler, smooth(), key, 8, params)

    for odd in (np.nan, np.inf):
        target = smooth()
        target.log_potentials[1, 0] = odd
        target.log_potentials[3, 1] = odd
        runs = run(KEYS, target.params)
        truth = np.exp(target.truth(sampler.path_log_weight).log_evidence)
        estimates = np.exp(np.asarray(runs.state.log_evidence, np.float64))
        error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - truth) < 4.0 * error < 0.15 * truth
        assert np.asarray(runs.infos.num_invalid).sum() > 0


def test_a_run_warns_once_of_what_is_no_weight():
    target = smooth()
    target.log_potentials[:, 0] = np.inf
    with pytest.warns(InvalidWeightWarning, match='scale="probability"') as caught:
        tsi.run(samplers.smc(), target, jax.random.key(0), 8)
    assert len(caught) == 1


def test_probabilities_of_one_are_certain_and_of_zero_impossible():
    handed_out = [1.0, 1.0 - 1e-12, 0.5, 1e-50, 0.0, -0.1, 1.1, np.nan]
    log_odds = log_odds_of(handed_out)
    assert log_odds.dtype == np.float32
    certain = np.log(CERTAIN / (1.0 - CERTAIN))
    assert certain == pytest.approx(16.64, abs=0.01)
    np.testing.assert_allclose(
        log_odds[:4], [certain, certain, 0.0, np.log(1e-50)], atol=1e-5
    )
    assert log_odds[4] == -np.inf
    assert np.isnan(log_odds[5:]).all()
    floored = log_odds_of(handed_out, floor=1e-3)
    np.testing.assert_allclose(floored[3:5], np.log(1e-3 / (1 - 1e-3)), rtol=1e-5)
    kept = np.array([1e5, -np.inf, np.inf, 0.25])
    np.testing.assert_array_equal(log_odds_of(kept, "log-odds"), kept)
    with pytest.raises(UnknownNameError, match="probability"):
        log_odds_of_reward("percent", None)
    with pytest.raises(ConfigurationError, match="log-odds"):
        log_odds_of_reward("log-odds", 0.1)
    with pytest.raises(ConfigurationError, match="above 0"):
        log_odds_of_reward("probability", 0.0)


def log_odds_of_reward(scale, floor):
    return TextReward(len, str, scale=scale, floor=floor)


def test_rounded_probabilities_of_one_and_zero_are_one_and_zero():
    certain, impossible = log_odds_of([1.0, 0.0])
    above = [1.0 + 1e-9, np.nextafter(np.float32(1), np.float32(2)), 1.0 + 1e-6]
    np.testing.assert_array_equal(log_odds_of(above), certain)
    below = [-5e-324, -1e-9, np.float32(-1e-7), -1e-6]
    np.testing.assert_array_equal(log_odds_of(below), impossible)
    least = np.log(1e-3 / (1 - 1e-3))
    np.testing.assert_allclose(log_odds_of(below, floor=1e-3), least, rtol=1e-5)
    assert np.isnan(log_odds_of([1.0 + 2e-6, -2e-6])).all()


def test_a_mean_in_float32_of_right_answers_has_the_weight_of_certainty():
    mean = np.cumsum(np.full(10, 0.1, np.float32))[-1]
    assert mean > 1
    reward = TextReward(lambda texts: [mean] * len(texts), str, scale="probability")
    verifier = Verifier(lambda *prefix: mean, str, scale="probability")
    question = verifier.prepare(["x"])._replace(lengths=0)
    question = question._replace(text=np.array([120], np.uint8), sizes=1)
    row = Prefix(question, [1], stopped=True, finished=True)
    for scorer in (reward, verifier):
        np.testing.assert_array_equal(scorer.score_rows([row]), log_odds_of([1.0]))


NUMERIC = (int, float, float | None)
GIVEN = {
    "reward": TextReward(len, str),
    "aggregation": "last",
    "measure": "top-k",
    "question": (1,),
    "scale": "probability",
}


def reward_classes():
    public = [getattr(tsi.rewards, name) for name in tsi.rewards.__all__]
    kinds = [kind for kind in public if inspect.isclass(kind)]
    return {
        kind: [n for n, p in parameters.items() if p.annotation in NUMERIC]
        for kind in kinds
        if not hasattr(kind, "_fields")
        for parameters in [inspect.signature(kind).parameters]
    }


@pytest.fixture
def unchecked_types():
    """Users have no type checker, which would refuse the arguments first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("value", ["a", [1, 2], 1j, b"1"], ids=repr)
def test_a_reward_names_an_argument_that_is_no_number(value, unchecked_types):
    checked = set()
    for kind, names in reward_classes().items():
        for name in names:
            wanted = inspect.signature(kind).parameters
            others = {n: 8 for n, p in wanted.items() if p.default is p.empty}
            known = {n: v for n, v in GIVEN.items() if n in wanted}
            with pytest.raises(ConfigurationError, match=f"{name}=.*not a number"):
                kind(**{**others, **known, name: value})
            checked.add(name)
    assert checked >= {"floor", "beta", "slope", "offset", "size", "width", "yes"}
