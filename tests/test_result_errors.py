"""Errors that a result states, against the variance over many runs on tables."""

import functools
import math

import jax
import numpy as np
import pytest

from tsi import samplers
from tsi.accuracy.answer_errors import answer_errors
from tsi.accuracy.diagnostics import diagnose, eves, probabilities_of
from tsi.accuracy.replicates import evidence_from_replicates
from tsi.engine.outcomes import diagnose_run
from tsi.results.estimand import estimand_of
from tsi.run import run
from tsi.targets.examples import EXAMPLES

ONE_QUICK = [
    pytest.param(name, marks=[] if name == "peaked" else [pytest.mark.slow])
    for name in sorted(EXAMPLES)
]
NUM_RUNS = 20_000
NUM_ESTIMATES = 500


@functools.cache
def runs(name, make_sampler, size):
    target, sampler = EXAMPLES[name](), make_sampler()

    def once(key):
        found = run(sampler, target, key, size)
        infos = found.infos
        last = found.particles.symbols[np.arange(size), found.particles.length - 1]
        return (
            (found.particles.symbols[:, 0], last),
            (found.state.log_weights, found.state.log_evidence),
            (infos.ancestors, infos.resampled, found.num_steps),
        )

    keys = jax.random.split(jax.random.key(5), NUM_RUNS)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(once))(keys))


def systematic_filter():
    return samplers.particle_filter(resampling=samplers.systematic)


# Measured ratios are in the docstring of tsi.accuracy.answer_errors; these are its
# bounds with room for the noise of 500 estimates (standard error up to 0.04).
@pytest.mark.long
@pytest.mark.parametrize("name", ONE_QUICK)
@pytest.mark.parametrize(
    ("make_sampler", "low", "high"),
    [
        pytest.param(
            lambda: samplers.weighted_best_of_n("odds"),
            0.88,
            1.06,
            marks=pytest.mark.slow,
        ),
        (samplers.particle_filter, 0.80, 1.06),
        (systematic_filter, 0.90, 1.12),
    ],
    ids=["independent", "multinomial", "systematic"],
)
def test_errors_of_answers_are_those_over_runs(name, make_sampler, low, high):
    (first, last), (log_w, log_z), genealogy = runs(name, make_sampler, 64)
    for symbols in (first, last):
        chosen = symbols == 0
        shares = np.exp(log_w.astype(np.float64))
        shares /= shares.sum(axis=1, keepdims=True)
        alive = np.isfinite(log_z)
        variance = (shares * chosen).sum(axis=1)[alive].var()
        estimates = []
        for r in np.flatnonzero(alive)[:NUM_ESTIMATES]:
            ancestors, resampled, steps = (array[r] for array in genealogy)
            answers = ["0" if zero else "other" for zero in chosen[r]]
            found = diagnose(
                answers,
                log_w[r],
                float(log_z[r]),
                eves(ancestors[:steps]),
                int(resampled[:steps].sum()),
            )
            estimates.append(found.answer_errors.get("0", 0.0) ** 2)
        # Runs whose particles share one eve know nothing, and there are few.
        assert np.mean(np.isnan(estimates)) < 0.002
        assert low < np.nanmean(estimates) / variance < high


def test_without_resampling_it_is_the_delta_method():
    shares = np.array([0.5, 0.3, 0.2, 0.0])
    errors = answer_errors(["a", "b", "a", "b"], shares, np.arange(4), 0)
    # p_a = 0.7: residuals 0.15, -0.21, 0.06.
    expected = math.sqrt(4 / 3 * (0.15**2 + 0.21**2 + 0.06**2))
    assert errors == pytest.approx({"a": expected, "b": expected})


def test_particles_without_an_answer_are_left_out_of_the_ratio():
    shares = np.array([0.25, 0.15, 0.1, 0.5])
    errors = answer_errors(["a", "b", "a", None], shares, np.arange(4), 0)
    expected = math.sqrt(4 / 3 * (0.15**2 + 0.21**2 + 0.06**2))
    assert errors == pytest.approx({"a": expected, "b": expected})


def test_families_move_together():
    shares = np.full(4, 0.25)
    answers = ["a", "b", "a", "a"]
    # p_a = 3/4; residuals 1/16, -3/16, 1/16, 1/16; families {0, 1} and {2, 3}.
    errors = answer_errors(answers, shares, np.array([2, 2, 0, 0]), 1)
    expected = math.sqrt((4 / 3) ** 2 * 2 * (2 / 16) ** 2)
    assert errors == pytest.approx({"a": expected, "b": expected})


@pytest.mark.parametrize(
    ("answers", "shares", "eves"),
    [
        (["a"], [1.0], [0]),
        (["a", "b"], [0.5, 0.5], [1, 1]),
        (["a", "b", "a"], [0.5, 0.5, 0.0], [1, 1, 2]),
        (["a", None], [0.0, 1.0], [0, 1]),
    ],
    ids=["one particle", "one family", "one family with weight", "no weight"],
)
def test_what_cannot_be_known_is_nan(answers, shares, eves):
    errors = answer_errors(answers, np.array(shares), np.array(eves), 1)
    assert list(errors) == [a for a in dict.fromkeys(answers) if a is not None]
    assert all(math.isnan(error) for error in errors.values())


def test_a_lost_run_has_no_errors():
    log_weights = np.linspace(0.0, 3.0, 30)
    arguments = (["a", "b"] * 15, log_weights)
    lost = diagnose(*arguments, -math.inf, np.arange(30), 0)
    assert math.isnan(lost.log_evidence_variance)
    assert math.isnan(lost.pareto_k)
    assert all(math.isnan(error) for error in lost.answer_errors.values())
    found = diagnose(*arguments, 0.0, np.arange(30), 0, has_evidence=False)
    assert math.isnan(found.log_evidence_variance)
    assert found.answer_errors["a"] > 0
    assert math.isfinite(found.pareto_k)


def test_islands_and_ranks_state_no_variance():
    found = {}
    for name, sampler in {
        "filter": samplers.particle_filter(),
        "islands": samplers.particle_filter(num_islands=2),
        "beam_search": samplers.beam_search(2),
    }.items():
        once = run(sampler, EXAMPLES["smooth"](), jax.random.key(0), 8)
        state, infos = jax.tree.map(np.asarray, (once.state, once.infos))
        answers = [str(row[-1]) for row in np.asarray(once.particles.symbols)]
        found[name] = diagnose_run(estimand_of(sampler), state, infos, answers)
    assert math.isfinite(found["filter"].log_evidence_variance)
    assert math.isnan(found["islands"].log_evidence_variance)
    assert all(error >= 0 for error in found["filter"].answer_errors.values())
    assert math.isnan(found["beam_search"].log_evidence_variance)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.beam_search(2),
        samplers.dvts(2),
        samplers.rebase(),
        samplers.particle_filter(variant="released"),
        samplers.entropic_particle_filter(variant="released"),
        samplers.smc(
            resampling=samplers.top_k_replicate(2),
            schedule=samplers.every_step,
            potential=samplers.product(),
        ),
    ],
)
def test_what_is_chosen_by_rank_states_no_errors_and_no_sizes(sampler):
    once = run(sampler, EXAMPLES["smooth"](), jax.random.key(0), 32)
    state, infos = jax.tree.map(np.asarray, (once.state, once.infos))
    assert np.isnan(infos.ess).all()
    answers = [str(row[-1]) for row in np.asarray(once.particles.symbols)]
    found = diagnose_run(estimand_of(sampler), state, infos, answers)
    assert math.isnan(found.log_evidence_variance)
    assert math.isnan(found.pareto_k)
    assert all(math.isnan(error) for error in found.answer_errors.values())
    assert infos.resampled.tolist() == [False, True, True, True]


def test_dead_particles_share_weight_equally_and_others_sum_to_one():
    np.testing.assert_array_equal(
        probabilities_of(np.full(4, -np.inf)), np.full(4, 0.25)
    )
    np.testing.assert_allclose(probabilities_of(np.log([3.0, 1.0]) - 800), [0.75, 0.25])


@pytest.mark.long
@pytest.mark.parametrize("name", ONE_QUICK)
def test_replicates_know_their_error(name):
    """z-scores of 400 means of 50 runs: centred, and of variance one."""
    sampler = samplers.particle_filter()
    _, (_, log_z), _ = runs(name, samplers.particle_filter, 64)
    truth = EXAMPLES[name]().truth(sampler.path_log_weight).log_evidence
    found = [evidence_from_replicates(row) for row in log_z.reshape(400, 50)]
    scores = np.array([(x.log_mean - truth) / x.standard_error for x in found])
    # The logarithm of a mean of 50 is biased by half its variance: below 0.1 z here.
    assert abs(scores.mean()) < 4 / 400**0.5 + 0.1
    assert abs(np.mean(scores**2) - 1) < 4 * (2 / 400) ** 0.5
    total = evidence_from_replicates(log_z)
    assert abs(total.log_mean - truth) < 4 * total.standard_error
    assert total.standard_error < 0.02


def test_replicates_by_hand():
    mean, error = evidence_from_replicates(np.log([1.0, 2.0, 3.0]) - 900)
    assert mean == pytest.approx(math.log(2) - 900)
    assert error == pytest.approx(1 / (2 * 3**0.5))
    with_zero = evidence_from_replicates(np.array([-np.inf, 0.0]))
    assert with_zero == pytest.approx((math.log(0.5), 1.0))


def test_one_replicate_or_none_alive_cannot_know_its_error():
    mean, error = evidence_from_replicates(np.array([-2.0]))
    assert mean == -2.0
    assert math.isnan(error)
    mean, error = evidence_from_replicates(np.full(3, -np.inf))
    assert mean == -math.inf
    assert math.isnan(error)
