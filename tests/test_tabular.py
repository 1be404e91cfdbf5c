"""The tabular target: its truth is right and its particles follow its tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import tsi
from tsi import samplers
from tsi.errors import ConfigurationError
from tsi.samplers.parts.potentials import product, telescoping, uniform
from tsi.targets import examples as tabular_examples
from tsi.targets import tabular

EXAMPLES = pytest.mark.parametrize("make", tabular_examples.EXAMPLES.values())


@EXAMPLES
def test_path_probabilities_sum_to_one(make):
    symbols, log_prob = make().paths()
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=1e-12)
    assert len(np.unique(make().path_codes(symbols))) == len(symbols)


def test_long_words_have_numbers_of_their_own_or_are_refused():
    third = np.full((3, 3), 1 / 3)
    target = tabular.TabularTarget(third[0], third, np.zeros((20, 3)))
    words = np.zeros((21, 20), np.int32)
    words[np.arange(20), np.arange(20)] = 1
    assert len(np.unique(target.path_codes(words))) == 21
    longer = tabular.TabularTarget(third[0], third, np.zeros((32, 3)))
    with pytest.raises(ConfigurationError, match="cannot be numbered in 64 bits"):
        longer.path_codes(np.zeros((1, 32), np.int32))


@EXAMPLES
def test_enumerated_evidence_equals_the_forward_recursion(make):
    # alpha_t(k) = sum_j alpha_{t-1}(j) P(j, k) G_t(k), with ended mass set aside.
    target = make()
    potentials = np.exp(target.log_potentials)
    alpha, ended = target.initial * potentials[0], 0.0
    for t in range(1, target.max_steps):
        if target.end is not None:
            ended += alpha[target.end]
            alpha[target.end] = 0.0
        alpha = alpha @ target.transition * potentials[t]
    truth = target.truth(product("odds").path_log_weight)
    np.testing.assert_allclose(np.exp(truth.log_evidence), ended + alpha.sum(), 1e-5)
    np.testing.assert_allclose(truth.posterior.sum(), 1.0, rtol=1e-9)


def test_truth_by_hand():
    target = tabular.TabularTarget(
        initial=[0.25, 0.75],
        transition=[[0.5, 0.5], [0.1, 0.9]],
        log_potentials=np.log([[2.0, 1.0], [3.0, 5.0]]),
        end=1,
    )
    # Paths: (1) ends at once; (0, 0) and (0, 1).
    truth = target.truth(product("odds").path_log_weight)
    masses = {(1, -1): 0.75, (0, 0): 0.25 * 0.5 * 6, (0, 1): 0.25 * 0.5 * 10}
    assert {tuple(path) for path in truth.symbols.tolist()} == set(masses)
    expected = np.array([masses[tuple(path)] for path in truth.symbols.tolist()])
    np.testing.assert_allclose(np.exp(truth.log_evidence), expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(truth.posterior, expected / expected.sum(), rtol=1e-6)
    last = target.truth(telescoping("odds").path_log_weight)
    expected = 0.75 * 1 + 0.125 * 3 + 0.125 * 5
    np.testing.assert_allclose(np.exp(last.log_evidence), expected, rtol=1e-6)


def test_a_step_limit_cuts_paths_in_the_truth_and_in_the_run():
    target = tabular_examples.unequal_lengths()
    sampler = samplers.smc()
    truth = target.truth(sampler.path_log_weight, max_steps=2)
    assert (truth.symbols[:, 2:] == -1).all()
    many = jax.jit(jax.vmap(lambda k: tsi.run(sampler, target, k, 8, max_steps=2)))
    runs = many(jax.random.split(jax.random.key(0), 5000))
    assert (np.asarray(runs.particles.symbols)[..., 2:] == -1).all()
    assert int(runs.num_steps.max()) == 2
    z_hat = np.exp(np.asarray(runs.state.log_evidence, np.float64))
    error = z_hat.mean() - np.exp(truth.log_evidence)
    assert abs(error) < 4 * z_hat.std() / np.sqrt(len(z_hat))


def test_particles_follow_the_proposal_and_report_its_correction():
    target = tabular_examples.peaked()
    particles = target.init(jax.random.key(0), 20_000)
    extended, correction = target.propose(jax.random.key(1), jnp.asarray(0), particles)
    first = np.asarray(extended.symbols[:, 0])
    expected = target.proposal_initial * len(first)
    assert stats.chisquare(np.bincount(first), expected).pvalue > 1e-3
    ratio = np.log(target.initial / target.proposal_initial)
    np.testing.assert_allclose(correction, ratio[first], rtol=1e-5)


def test_a_particles_stream_does_not_depend_on_how_many_there_are():
    target = tabular_examples.smooth()
    sampler = samplers.self_consistency()
    few = tsi.run(sampler, target, jax.random.key(4), 3)
    many = tsi.run(sampler, target, jax.random.key(4), 9)
    np.testing.assert_array_equal(few.particles.symbols, many.particles.symbols[:3])


def test_finished_paths_stay_as_they_are():
    target = tabular_examples.unequal_lengths()
    run = tsi.run(samplers.self_consistency(), target, jax.random.key(0), 64)
    symbols = np.asarray(run.particles.symbols)
    for path, length in zip(symbols, np.asarray(run.particles.length), strict=True):
        assert (path[length:] == -1).all()
        assert length == 4 or path[length - 1] == target.end
        assert not (path[: length - 1] == target.end).any()


def test_an_impossible_target_has_no_evidence():
    target = tabular_examples.smooth()
    target.log_potentials[2] = -np.inf
    truth = target.truth(product("odds").path_log_weight)
    assert truth.log_evidence == -np.inf
    assert not truth.posterior.any()
    truth = target.truth(uniform().path_log_weight)
    np.testing.assert_allclose(truth.log_evidence, 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"initial": [0.5, 0.6]}, "rows of probabilities"),
        ({"transition": [[1.0, 0.0]]}, "rows of probabilities"),
        ({"proposal_initial": [1.0, 0.0]}, "no weight can correct"),
    ],
)
def test_bad_tables_are_reported(change, complaint):
    tables = {
        "initial": [0.5, 0.5],
        "transition": [[0.5, 0.5], [0.5, 0.5]],
        "log_potentials": [[0.0, 0.0]],
    }
    with pytest.raises(ConfigurationError, match=complaint):
        tabular.TabularTarget(**(tables | change))
