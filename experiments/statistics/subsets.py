r"""Accuracy at every n <= N from one pool of N independent samples of a problem.

A method that selects from n independent samples has an accuracy that is the expectation
over subsets: every subset of size n of a pool is a sample of size n. Its mean over all
subsets is unbiased and varies less than the value for the first n samples. (Different n
share a pool, so points of a curve depend on each other.)

- *Best of n*: a closed form. If a samples have a higher reward than a group of m equal
  ones, the group has the best of the subset in C(N - a, n) - C(N - a - m, n) of C(N, n)
  subsets, and by symmetry each of its members is selected equally often.
- *Majority vote*: exact, by generating functions. The answer j wins with v votes if all
  others have at most v, and if t others have v as well, in one of 1 + t cases. With c_i
  copies of answer i, the number of subsets is the coefficient of x^n in

      C(c_j, v) x^v \prod_{i != j} (\sum_{u < v} C(c_i, u) x^u + y C(c_i, v) x^v),

  where y^t counts 1 / (1 + t).
- *Weighted vote*: over all subsets if there are few, and over random ones otherwise,
  with the standard error of that. Of answers with equal totals the first drawn is
  selected, that is, one with k samples in k cases of the samples of all of them.

Samples without an answer are drawn like others, and never selected.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import comb

from tsi.errors import ConfigurationError
from tsi.experiments.statistics.pass_at_k import log_choose


class SubsetAccuracy(NamedTuple):
    """Expected correctness of the selection from a random subset.

    Args:
        accuracy: for each size.
        error: standard error of the random choice of subsets; 0 where it is exact. The
            error of the pool itself is between problems.
    """

    accuracy: Float[np.ndarray, "K"]
    error: Float[np.ndarray, "K"]


def best_of_subsets(
    rewards: Float[np.ndarray, "N"],
    correct: Bool[np.ndarray, "N"],
    sizes: Sequence[int],
) -> SubsetAccuracy:
    """Accuracy of the sample of highest reward, of n.

    Args:
        rewards: of each sample; -inf for one without an answer. NaN counts as 0, as in
            `tsi.results.answers.select`.
        correct: whether each sample is right; False for one without an answer.
        sizes: n, each at most N.

    Raises:
        ConfigurationError: a size is outside the pool.
    """
    size = _check(sizes, len(correct))
    values, groups = np.unique(np.nan_to_num(rewards, nan=0.0), return_inverse=True)
    members = np.bincount(groups, minlength=values.size)
    shares = np.bincount(groups, np.asarray(correct, float)) / members
    # Samples at or below each group, and below it.
    upto = np.cumsum(members)
    accuracies = []
    for n in sizes:
        total = log_choose(np.array(size), n)
        chances = np.exp(log_choose(upto, n) - total)
        chances -= np.exp(log_choose(upto - members, n) - total)
        accuracies.append(float(chances @ shares))
    return SubsetAccuracy(np.array(accuracies), np.zeros(len(accuracies)))


def vote_of_subsets(
    answers: Sequence[str | None], correct: Bool[np.ndarray, "N"], sizes: Sequence[int]
) -> SubsetAccuracy:
    """Accuracy of the most frequent answer, of n; ties are broken at random.

    Args:
        answers: of each sample, None without one.
        correct: whether each sample is right; equal for equal answers.
        sizes: n, each at most N.

    Raises:
        ConfigurationError: a size is outside the pool.
    """
    size = _check(sizes, len(answers))
    counts: dict[str, int] = {}
    is_right: dict[str, bool] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
            is_right[answer] = bool(right)
    largest = max(sizes)
    subsets_won = np.zeros(largest + 1)
    subsets_without_answer = comb(size - sum(counts.values()), np.arange(largest + 1))
    for answer in (answer for answer in counts if is_right[answer]):
        others = [count for other, count in counts.items() if other != answer]
        for votes in range(1, min(counts[answer], largest) + 1):
            # Coefficients by x (samples) and y (other answers with as many votes).
            ways = np.zeros((largest + 1, len(others) + 1))
            ways[votes:, 0] = (
                comb(counts[answer], votes)
                * subsets_without_answer[: largest + 1 - votes]
            )
            for count in others:
                ways = _times_answer(ways, count, votes)
            subsets_won += ways @ (1 / (1 + np.arange(len(others) + 1)))
    accuracies = np.array([subsets_won[n] / comb(size, n) for n in sizes])
    return SubsetAccuracy(accuracies, np.zeros(len(accuracies)))


def _times_answer(ways: np.ndarray, count: int, votes: int) -> np.ndarray:
    """Multiply by the ways in which another answer gets at most so many votes."""
    product = np.zeros_like(ways)
    for u in range(min(count, votes) + 1):
        shifted_ways = ways[: len(ways) - u] * comb(count, u)
        if u < votes:
            product[u:] += shifted_ways
        else:
            product[u:, 1:] += shifted_ways[:, :-1]
    return product


def weighted_vote_of_subsets(
    answers: Sequence[str | None],
    weights: Float[np.ndarray, "N"],
    correct: Bool[np.ndarray, "N"],
    sizes: Sequence[int],
    *,
    num_subsets: int = 2000,
    seed: int = 0,
) -> SubsetAccuracy:
    """Accuracy of the answer with the largest total weight, of n.

    Args:
        answers: of each sample, None without one.
        weights: of each sample.
        correct: whether each sample is right; equal for equal answers.
        sizes: n, each at most N.
        num_subsets: subsets of each size; if there are no more, all are used.
        seed: of the random subsets.

    Raises:
        ConfigurationError: a size is outside the pool.
    """
    size = _check(sizes, len(answers))
    names = sorted({answer for answer in answers if answer is not None})
    labels = np.array([names.index(a) if a is not None else -1 for a in answers])
    table = np.zeros((size, len(names)))
    table[labels >= 0, labels[labels >= 0]] = np.asarray(weights)[labels >= 0]
    is_drawn = (labels[:, None] == np.arange(len(names))) * 1.0
    is_right = np.zeros(len(names), bool)
    is_right[labels[labels >= 0]] = np.asarray(correct, bool)[labels >= 0]
    orders = np.random.default_rng(seed).random((num_subsets, size)).argsort(axis=1)
    means, errors = [], []
    for n in sizes:
        is_exact = math.comb(size, n) <= num_subsets
        subsets = (
            np.array(list(itertools.combinations(range(size), n)))
            if is_exact
            else orders[:, :n]
        )
        right = _selections(table[subsets].sum(1), is_drawn[subsets].sum(1), is_right)
        means.append(right.mean())
        has_error = not is_exact and num_subsets > 1
        errors.append(right.std(ddof=1) / len(right) ** 0.5 if has_error else 0.0)
    return SubsetAccuracy(np.array(means), np.array(errors))


def _selections(
    totals: np.ndarray, counts: np.ndarray, is_right: np.ndarray
) -> Float[np.ndarray, "R"]:
    """Share of right answers among those with the largest total, in each subset."""
    if is_right.size == 0:
        return np.zeros(len(totals))
    # Sums in another order differ by rounding; the largest of them are tied.
    totals = np.where(counts > 0, np.round(totals, 12), -np.inf)
    is_top = (totals == totals.max(axis=1, keepdims=True)) & (counts > 0)
    # Of tied answers the first drawn is selected: each sample is first equally often.
    tied = counts * is_top
    return (tied * is_right).sum(axis=1) / np.maximum(tied.sum(axis=1), 1)


def _check(sizes: Sequence[int], size: int) -> int:
    if not sizes or min(sizes) < 1 or max(sizes) > size:
        raise ConfigurationError(
            f"Subsets of sizes {list(sizes)} cannot be drawn from a pool of {size}; "
            "choose sizes from 1 to the size of the pool."
        )
    return size
