"""Wilson intervals of accuracies against closed forms and simulated coverage."""

import numpy as np
import pytest
from scipy import stats

from tsi.experiments.statistics.accuracy import (
    ONE_ERROR,
    accuracy,
    accuracy_interval,
    effective_number,
    has_few,
)
from tsi.experiments.statistics.wilson_interval import wilson_interval


def simulate(generator, num_problems, num_seeds, a, b):
    """Runs whose problems have success probabilities of a beta distribution."""
    difficulty = generator.beta(a, b, size=(num_problems, 1))
    return generator.random((num_problems, num_seeds)) < difficulty


@pytest.mark.parametrize(("right", "number"), [(0, 8), (3, 8), (8, 8), (150, 420)])
def test_wilson_interval_is_the_textbook_one(right, number):
    expected = stats.binomtest(right, number).proportion_ci(method="wilson")
    got = wilson_interval(right / number, number)
    np.testing.assert_allclose(got, (expected.low, expected.high), atol=1e-12)


def test_nothing_right_of_eight_is_not_certainly_zero():
    low, high = accuracy_interval(np.zeros((8, 1)))
    assert low == 0.0
    assert high == pytest.approx(0.324, abs=1e-3)
    assert accuracy_interval(np.ones((8, 1))).high == 1.0
    assert has_few(np.zeros((8, 1)))
    assert has_few(np.ones((400, 1)))


def test_one_standard_error_on_either_side_has_its_own_level():
    correct = np.arange(1000)[:, None] % 3 == 0
    mean, error = accuracy(correct)
    low, high = accuracy_interval(correct, ONE_ERROR)
    assert (low, high) == pytest.approx((mean - error, mean + error), abs=3e-4)
    assert not has_few(correct)


def test_copies_of_seeds_add_nothing_and_independent_seeds_count_fully():
    generator = np.random.default_rng(0)
    one = generator.random((400, 1)) < 0.3
    assert effective_number(one) == 400
    assert effective_number(np.repeat(one, 5, axis=1)) == pytest.approx(400)
    # Seeds of equally hard problems are independent.
    alike = effective_number(generator.random((400, 5)) < 0.3)
    assert 1700 < alike <= 2000
    # All seeds right: nothing is known of how alike they are.
    assert effective_number(np.ones((8, 5))) == 8
    assert effective_number(np.array([[1, 0, 1, 1]])) == 1


def test_effective_number_gives_the_clustered_error():
    correct = simulate(np.random.default_rng(1), 5000, 4, 1.0, 1.0)
    mean, error = accuracy(correct)
    naive = np.sqrt(mean * (1 - mean) / effective_number(correct))
    assert naive == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize(
    ("num_problems", "num_seeds", "a", "b"),
    [(8, 1, 1.0, 1.0), (20, 4, 0.5, 0.5), (20, 4, 1.0, 9.0), (100, 4, 1.0, 3.0)],
)
def test_intervals_cover_the_known_accuracy(num_problems, num_seeds, a, b):
    generator, trials = np.random.default_rng(2), 2000
    covered = 0
    for _ in range(trials):
        correct = simulate(generator, num_problems, num_seeds, a, b)
        low, high = accuracy_interval(correct)
        covered += low <= a / (a + b) <= high
    # Wilson's interval covers between 0.93 and 0.98 for these; a binomial error of
    # 2,000 trials is 0.005.
    assert 0.93 < covered / trials < 0.985


def test_a_standard_error_alone_would_not_cover():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(500):
        correct = simulate(generator, 8, 1, 1.0, 9.0)
        mean, error = accuracy(correct)
        covered += mean - 1.96 * error <= 0.1 <= mean + 1.96 * error
    assert covered / 500 < 0.7
