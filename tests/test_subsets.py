"""pass@k and accuracies over subsets of a pool, against brute-force enumeration."""

import itertools

import numpy as np
import pytest

from tsi.errors import ConfigurationError
from tsi.experiments.statistics.pass_at_k import pass_at_k
from tsi.experiments.statistics.subsets import (
    best_of_subsets,
    vote_of_subsets,
    weighted_vote_of_subsets,
)
from tsi.results.selection import select

SIZES = (1, 2, 3, 5, 7)


def make_pool(seed, size=7, num_answers=3, num_rewards=4):
    """Answers, rewards and correctness, with ties and samples without an answer."""
    generator = np.random.default_rng(seed)
    answers = [
        None if a == num_answers else str(a)
        for a in generator.integers(0, num_answers + 1, size)
    ]
    rewards = generator.integers(1, 1 + num_rewards, size) / 8
    return answers, rewards, np.array([a in ("0", "2") for a in answers])


def over_orders(rule, answers, rewards, size):
    """Mean correctness of `select` over all ordered subsets."""
    right = []
    for chosen in itertools.permutations(range(len(answers)), size):
        drawn = [answers[n] for n in chosen]
        selected = select(rule, drawn, np.zeros(size), rewards[list(chosen)])
        right.append(selected in ("0", "2"))
    return np.mean(right)


@pytest.mark.parametrize("seed", range(4))
def test_best_of_n_equals_the_mean_over_all_ordered_subsets(seed):
    answers, rewards, correct = make_pool(seed)
    scores = np.where([a is None for a in answers], -np.inf, rewards)
    got = best_of_subsets(scores, correct, SIZES)
    expected = [over_orders("argmax", answers, rewards, n) for n in SIZES]
    np.testing.assert_allclose(got.accuracy, expected, atol=1e-12)
    assert not got.error.any()


@pytest.mark.parametrize("seed", range(4))
def test_a_majority_vote_equals_the_mean_over_all_ordered_subsets(seed):
    answers, rewards, correct = make_pool(seed, num_answers=4 - seed % 2)
    got = vote_of_subsets(answers, correct, SIZES)
    expected = [over_orders("vote", answers, rewards, n) for n in SIZES]
    np.testing.assert_allclose(got.accuracy, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_weighted_vote_over_few_subsets_is_exact(seed):
    answers, rewards, correct = make_pool(seed)
    got = weighted_vote_of_subsets(answers, rewards, correct, SIZES)
    expected = [over_orders("weighted_vote", answers, rewards, n) for n in SIZES]
    np.testing.assert_allclose(got.accuracy, expected, atol=1e-12)
    assert not got.error.any()


def test_random_subsets_agree_with_all_of_them_within_their_error():
    answers, rewards, correct = make_pool(5, size=12)
    sizes = (2, 4, 6)
    exact = weighted_vote_of_subsets(
        answers, rewards, correct, sizes, num_subsets=10_000
    )
    drawn = weighted_vote_of_subsets(answers, rewards, correct, sizes, num_subsets=60)
    assert (drawn.error > 0).all()
    z = (drawn.accuracy - exact.accuracy) / drawn.error
    assert (np.abs(z) < 4).all()
    # A vote of equal weights is a majority vote.
    votes = vote_of_subsets(answers, correct, sizes)
    equal = weighted_vote_of_subsets(
        answers, np.ones(12), correct, sizes, num_subsets=10_000
    )
    np.testing.assert_allclose(votes.accuracy, equal.accuracy, atol=1e-12)


def test_a_large_pool_is_computed_without_overflow():
    answers, rewards, correct = make_pool(6, size=256, num_answers=20)
    sizes = (1, 16, 128, 256)
    for got in (
        best_of_subsets(rewards, correct, sizes).accuracy,
        vote_of_subsets(answers, correct, sizes).accuracy,
    ):
        assert got[0] == pytest.approx(correct.mean(), abs=1e-9)
        assert ((got >= 0) & (got <= 1 + 1e-9)).all()


def test_a_vote_in_a_pool_of_thousands_is_that_of_its_subsets():
    size, sizes = 4096, (1, 3, 64, 2048, 4095)
    # Two large answers, many of one sample, and samples without an answer.
    answers = ["a"] * 900 + ["b"] * 890 + [f"c{i}" for i in range(300)]
    answers = answers + [None] * (size - len(answers))
    correct = np.array([answer in ("b", "c7") for answer in answers])
    exact = vote_of_subsets(answers, correct, sizes)
    assert exact.accuracy[0] == pytest.approx(correct.mean(), abs=1e-9)
    assert np.isfinite(exact.accuracy).all()
    assert exact.accuracy[-1] == pytest.approx(0, abs=1e-9)
    drawn = weighted_vote_of_subsets(answers, np.ones(size), correct, sizes[1:4])
    z = (drawn.accuracy - exact.accuracy[1:4]) / drawn.error
    assert (np.abs(z) < 4).all()


def test_a_pool_without_answers_is_never_right():
    answers, correct = [None] * 4, np.zeros(4, bool)
    for got in (
        best_of_subsets(np.full(4, -np.inf), correct, (1, 4)),
        vote_of_subsets(answers, correct, (1, 4)),
        weighted_vote_of_subsets(answers, np.ones(4), correct, (1, 4)),
    ):
        assert not got.accuracy.any()


def test_pass_at_k_equals_enumeration():
    for right in range(7):
        is_right = np.arange(6) < right
        for k in range(1, 7):
            expected = np.mean(
                [is_right[list(s)].any() for s in itertools.combinations(range(6), k)]
            )
            assert pass_at_k(np.array(right), 6, k) == pytest.approx(expected)


def test_pass_at_k_is_unbiased_and_the_plug_in_value_is_not():
    generator, p, n, k = np.random.default_rng(0), 0.2, 8, 4
    right = generator.binomial(n, p, size=40_000)
    estimates = pass_at_k(right, n, k)
    truth = 1 - (1 - p) ** k
    error = estimates.std() / 200
    assert abs(estimates.mean() - truth) < 4 * error
    plug_in = 1 - (1 - right / n) ** k
    assert abs(plug_in.mean() - truth) > 10 * error


def test_sizes_outside_the_pool_are_refused():
    with pytest.raises(ConfigurationError, match="pool of 4"):
        vote_of_subsets(["1"] * 4, np.ones(4, bool), (5,))
    with pytest.raises(ConfigurationError, match="pass@5"):
        pass_at_k(np.array([1]), 4, 5)
    with pytest.raises(ConfigurationError, match="n = 4"):
        pass_at_k(np.array([5]), 4, 2)
