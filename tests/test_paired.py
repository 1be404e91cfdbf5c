"""Paired differences, Holm's adjustment and sample sizes, against known truth."""

import itertools

import numpy as np
import pytest
from scipy import stats

from tsi.errors import ConfigurationError
from tsi.experiments.statistics.holm import holm
from tsi.experiments.statistics.paired import paired_difference
from tsi.experiments.statistics.power_analysis import problems_needed
from tsi.experiments.statistics.sign_flip_test import sign_flip_p_value


def simulate(generator, num_problems, only_a, only_b, num_seeds=1):
    """Pairs of which the given shares are right in A alone, and in B alone."""
    draw = generator.random((num_problems, num_seeds))
    a = draw < only_a
    b = (draw >= only_a) & (draw < only_a + only_b)
    both = generator.random(draw.shape) < 0.5
    is_same = ~(a | b) & both
    return a | is_same, b | is_same


@pytest.mark.parametrize(("first", "second"), [(0, 0), (7, 0), (12, 5), (40, 41)])
def test_with_one_seed_the_test_is_mcnemars_exact_test(first, second):
    totals = np.array([1] * first + [-1] * second + [0] * 50)
    number = first + second
    expected = stats.binomtest(first, number).pvalue if number else 1.0
    assert sign_flip_p_value(totals) == pytest.approx(expected, rel=1e-12)


def test_with_seeds_the_p_value_is_that_of_all_signs():
    totals = np.random.default_rng(0).integers(-4, 5, size=10)
    sums = [
        abs(np.dot(signs, totals)) for signs in itertools.product([-1, 1], repeat=10)
    ]
    expected = np.mean(np.array(sums) >= abs(totals.sum()))
    assert sign_flip_p_value(totals) == pytest.approx(expected, rel=1e-12)


def test_difference_and_error_are_those_of_the_mean_of_differences():
    generator = np.random.default_rng(1)
    a, b = generator.random((2, 50, 3)) < [[[0.6]], [[0.4]]]
    got = paired_difference(a, b)
    by_problem = (a.astype(float) - b).mean(axis=1)
    assert got.difference == pytest.approx(by_problem.mean())
    assert got.error == pytest.approx(stats.sem(by_problem))
    assert got.only_a == (a & ~b).sum()
    assert got.only_b == (b & ~a).sum()
    assert (got.num_pairs, got.mean_square) == (150, (by_problem**2).mean())
    swapped = paired_difference(b, a)
    assert swapped.difference == -got.difference
    assert swapped.p_value == got.p_value
    assert swapped.interval.low == pytest.approx(-got.interval.high)


def test_equal_methods_have_no_error_but_an_interval():
    got = paired_difference(np.ones((8, 1)), np.ones((8, 1)))
    assert got.difference == 0
    assert np.isnan(got.error)
    assert got.p_value == 1
    assert got.interval.low < -0.15
    assert got.interval.high > 0.15


def test_a_single_seed_is_compared_with_each_seed_of_the_other():
    a, b = np.array([[1], [0]]), np.array([[1, 0], [1, 1]])
    got = paired_difference(a, b)
    assert (got.only_a, got.only_b, got.num_pairs) == (1, 2, 4)


@pytest.mark.parametrize("shape", [(3, 2), (4, 3)])
def test_other_problems_or_seeds_are_refused(shape):
    with pytest.raises(ConfigurationError, match="same problems and seeds"):
        paired_difference(np.ones((4, 2)), np.ones(shape))


@pytest.mark.parametrize(
    ("num_problems", "only_a", "only_b", "num_seeds"),
    [(10, 0.1, 0.1, 1), (20, 0.2, 0.05, 1), (200, 0.1, 0.05, 1), (30, 0.1, 0.05, 3)],
)
def test_intervals_cover_and_the_test_keeps_its_level(
    num_problems, only_a, only_b, num_seeds
):
    generator, trials = np.random.default_rng(2), 1000
    covered = rejected = 0
    for _ in range(trials):
        got = paired_difference(
            *simulate(generator, num_problems, only_a, only_b, num_seeds)
        )
        covered += got.interval.low <= only_a - only_b <= got.interval.high
        null = paired_difference(
            *simulate(generator, num_problems, only_a, only_a, num_seeds)
        )
        rejected += null.p_value <= 0.05
    # Four binomial errors of 1,000 trials are 0.028.
    assert covered / trials > 0.95 - 0.028
    assert rejected / trials < 0.05 + 0.028


def test_holm_is_what_a_hand_computes():
    adjusted = holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1.0, 1.0])
    assert holm([]).size == 0


def test_holm_keeps_the_probability_of_any_false_rejection():
    generator = np.random.default_rng(3)
    p = generator.random((2000, 10))
    raw = (p.min(axis=1) <= 0.05).mean()
    adjusted = np.mean([holm(row.tolist()).min() <= 0.05 for row in p])
    assert raw > 0.35
    assert adjusted < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(
    ("only_a", "only_b", "num_seeds"), [(0.15, 0.05, 1), (0.2, 0.15, 1), (0.2, 0.1, 3)]
)
def test_the_test_has_the_power_that_was_asked_for(only_a, only_b, num_seeds):
    difference = only_a - only_b
    pilot = paired_difference(
        *simulate(np.random.default_rng(4), 50_000, only_a, only_b, num_seeds)
    )
    number = problems_needed(pilot.mean_square, difference, num_seeds=num_seeds)
    generator, trials = np.random.default_rng(5), 600
    found = sum(
        paired_difference(
            *simulate(generator, number, only_a, only_b, num_seeds)
        ).p_value
        <= 0.05
        for _ in range(trials)
    )
    # A binomial error is 0.016.
    assert found / trials == pytest.approx(0.8, abs=0.05)


def test_problems_needed_is_the_textbook_number():
    # Connor 1987: 1.96 and 0.8416, without the correction of 1 / d.
    root = 1.959964 * np.sqrt(0.2) + 0.841621 * np.sqrt(0.2 - 0.0025)
    assert problems_needed(0.2, 0.05) == np.ceil((root / 0.05) ** 2 + 20)
    # A difference of 5 points needs five discordant pairs of a hundred.
    assert problems_needed(0.0, 0.05) == problems_needed(0.05, 0.05)
    assert problems_needed(0.2, 0.02) > 6 * problems_needed(0.2, 0.05)


@pytest.mark.parametrize(
    "values", [{"difference": 5.0}, {"difference": 0.0}, {"power": 1.0}, {"level": 0.0}]
)
def test_numbers_outside_their_range_are_refused(values):
    with pytest.raises(ConfigurationError, match="5 points are"):
        problems_needed(0.2, **({"difference": 0.05} | values))
