r"""Accuracy at every n <= N from one pool of N independent samples of a problem.

A method that selects from n independent samples has an accuracy that is the expectation
over subsets: every subset of size n of a pool is a sample of size n. Its mean over all
subsets is unbiased and varies less than the value for the first n samples. (Different n
share a pool, so points of a curve depend on each other.)

- *Best of n*: a closed form. If a samples have a higher reward than a group of m equal
  ones, the group has the best of the subset in C(N - a, n) - C(N - a - m, n) of C(N, n)
  subsets, and by symmetry each of its members is selected equally often.
- *Majority vote*: exact, by generating functions. The answer j wins with v votes if all
  others have at most v, and if t others have v as well, in one of 1 + t cases. Let each
  sample be drawn with probability p = n / N. Given that n are drawn, every subset of n
  is equally likely, and answer i, with c_i samples, has u votes with probability
  b_i(u) = C(c_i, u) p^u (1 - p)^(c_i - u). So the probability is the coefficient of x^n
  in

      b_j(v) x^v \prod_{i != j} (\sum_{u < v} b_i(u) x^u + y b_i(v) x^v),

  where y^t counts 1 / (1 + t), divided by that in (1 - p + p x)^N. These numbers are
  between 0 and 1 for pools of any size. The product over answers with fewer than v
  samples is one binomial distribution.
- *Weighted vote*: over all subsets if there are few, and over random ones otherwise,
  with the standard error of that. Of answers with equal totals the first drawn is
  selected, that is, one with k samples in k cases of the samples of all of them.

Samples without an answer are drawn like others, and never selected.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import gammaln, xlog1py, xlogy

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
    chances = [_vote_chance(counts, is_right, size, n) for n in sizes]
    return SubsetAccuracy(np.array(chances), np.zeros(len(chances)))


def _vote_chance(
    counts: Mapping[str, int], is_right: Mapping[str, bool], size: int, n: int
) -> float:
    """Probability that a right answer wins the vote of n samples of a pool."""
    draws = {c: _binomial(c, n / size, n) for c in {*counts.values()}}
    probability = 0.0
    for answer in (answer for answer in counts if is_right[answer]):
        others = [count for other, count in counts.items() if other != answer]
        for votes in range(1, min(counts[answer], n) + 1):
            rivals = [count for count in others if count >= votes]
            # Samples that cannot make another answer win are drawn in any number.
            rest = size - counts[answer] - sum(rivals)
            if n - votes > rest + votes * len(rivals):
                continue
            ties = _tie_chances(
                [draws[count] for count in rivals],
                _binomial(rest, n / size, n - votes),
                votes,
            )
            shares = ties / (1 + np.arange(len(ties)))
            probability += draws[counts[answer]][votes] * shares.sum()
    return float(probability / _binomial(size, n / size, n)[n])


def _tie_chances(
    rivals: Sequence[Float[np.ndarray, "U"]], rest: Float[np.ndarray, "D"], votes: int
) -> Float[np.ndarray, "T"]:
    """Probabilities that 0, 1, ... rivals have as many votes, and none has more.

    Args:
        rivals: probabilities of the votes of each.
        rest: probabilities of the number of all other samples; its length less one is
            how many samples are drawn of these and of the rivals.
        votes: of the answer that they may tie with.
    """
    if votes == 1:
        # Each rival is drawn once or not at all; there may be thousands of them.
        ties = np.ones(1)
        for draws in rivals:
            ties = np.convolve(ties, draws[:2])[: len(rest)]
        return ties * rest[::-1][: len(ties)]
    # By the number of samples, and of rivals with as many votes.
    ways = rest[:, None]
    for draws in rivals:
        ways = _add_rival(ways, draws, votes)[:, : 1 + len(rest) // votes]
    return ways[-1]


def _add_rival(
    ways: Float[np.ndarray, "D T"], draws: Float[np.ndarray, "U"], votes: int
) -> Float[np.ndarray, "D W"]:
    """Add a rival that gets at most so many votes to the probabilities.

    Args:
        ways: probabilities by the number of samples and of rivals with as many votes.
        draws: probabilities of the votes of the new rival.
        votes: of the answer that it may tie with.
    """
    size, width = ways.shape
    product = np.zeros((size, width + 1))
    if votes < width:
        for u in range(min(votes, size)):
            product[u:, :-1] += draws[u] * ways[: size - u]
    else:
        for t in range(width):
            product[:, t] = np.convolve(ways[:, t], draws[:votes])[:size]
    if votes < size:
        product[votes:, 1:] += draws[votes] * ways[: size - votes]
    return product


def _binomial(count: int, share: float, largest: int) -> Float[np.ndarray, "U"]:
    """Probabilities that 0, 1, ..., `largest` of some samples are drawn."""
    u = np.arange(largest + 1)
    rest = np.maximum(count - u, 0)
    log_ways = gammaln(count + 1) - gammaln(u + 1) - gammaln(rest + 1)
    chances = np.exp(log_ways + xlogy(u, share) + xlog1py(rest, -share))
    return np.where(u <= count, chances, 0.0)


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
    is_answer = (labels[:, None] == np.arange(len(names))) * 1.0
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
        # A table of subsets by samples: a pool of thousands fits into memory.
        is_drawn = np.zeros((len(subsets), size))
        np.put_along_axis(is_drawn, subsets, 1.0, axis=1)
        right = _selections(is_drawn @ table, is_drawn @ is_answer, is_right)
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
