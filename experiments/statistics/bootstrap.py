"""Standard errors and intervals for seeds nested in problems.

Seeds of one problem share its difficulty, so problems are resampled (clusters), and
seeds are resampled within each resampled problem. This second stage counts the noise
between seeds twice, so intervals are slightly too wide with many seeds; with one seed
they agree with the clustered formula. Two methods are compared on the same resampled
problems and seeds (paired), because their runs share problems and random numbers, and
their difference is less noisy than either accuracy.

Reference: Field and Welsh 2007, "Bootstrapping clustered data", J. R. Stat. Soc. B 69,
the two-stage scheme; Miller 2024, arXiv 2411.00640, clustered standard errors of
evaluations.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from tsi.errors import ConfigurationError
from tsi.experiments.statistics.scaling_rate import (
    Envelope,
    ScalingRate,
    is_in_range,
    log_budget_needed,
    scaling_rate,
)
from tsi.experiments.statistics.wilson_interval import Interval

# Budget -> 0 or 1 for each problem and seed, [P, S].
Curve = Mapping[int, np.ndarray] | Mapping[float, np.ndarray]


class RateEstimate(NamedTuple):
    """A scaling rate with intervals.

    Args:
        rate: the estimate from all problems and seeds.
        mean: interval of the geometric mean.
        top: interval of the factor at the top of the common range.
        curve: interval at each accuracy of `rate.accuracies`.
        fraction_shared: fraction of replicates whose curves have a common range.
    """

    rate: ScalingRate
    mean: Interval
    top: Interval
    curve: list[Interval]
    fraction_shared: float


def cluster_weights(
    seed: int, num_replicates: int, num_problems: int, num_seeds: int
) -> Float[np.ndarray, "R PS"]:
    """Weight of each (problem, seed) in each bootstrap replicate; rows sum to one.

    Args:
        seed: of the numpy generator.
        num_replicates: R, number of replicates.
        num_problems: P, drawn with replacement.
        num_seeds: S, drawn with replacement within each drawn problem.
    """
    generator = np.random.default_rng(seed)
    problems = generator.integers(num_problems, size=(num_replicates, num_problems, 1))
    seeds = generator.integers(
        num_seeds, size=(num_replicates, num_problems, num_seeds)
    )
    cells = (problems * num_seeds + seeds).reshape(num_replicates, -1)
    size = num_problems * num_seeds
    indices = cells + size * np.arange(num_replicates)[:, None]
    counts = np.bincount(indices.ravel(), minlength=num_replicates * size)
    return counts.reshape(num_replicates, size) / size


def cluster_draws(
    seed: int, num_replicates: int, num_problems: int
) -> Float[np.ndarray, "R P"]:
    """How often each problem, with all its seeds, is in each bootstrap replicate."""
    generator = np.random.default_rng(seed)
    shares = np.full(num_problems, 1 / num_problems)
    return generator.multinomial(num_problems, shares, num_replicates).astype(float)


def bootstrap_accuracies(
    weights: Float[np.ndarray, "R PS"], correct: Shaped[np.ndarray, "P S K"]
) -> Float[np.ndarray, "R K"]:
    """Accuracy at each of K budgets in each replicate."""
    return weights @ correct.reshape(weights.shape[1], -1).astype(np.float64)


def bootstrap_scaling_rate(
    correct_a: Curve,
    correct_b: Curve,
    *,
    envelope: Envelope = "running_maximum",
    num_replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RateEstimate:
    """Scaling rate of A over B with paired percentile intervals.

    Args:
        correct_a: budget -> 0 or 1 for each problem and seed.
        correct_b: the same for B, on the same problems and seeds.
        envelope: of the accuracies; see `scaling_rate`.
        num_replicates: bootstrap replicates.
        seed: of the bootstrap.
        level: coverage.

    Raises:
        ConfigurationError: the two were not run on the same problems and seeds.
    """
    budgets_a, stack_a = _stack(correct_a)
    budgets_b, stack_b = _stack(correct_b)
    if stack_a.shape[:2] != stack_b.shape[:2]:
        raise ConfigurationError(
            f"A paired bootstrap needs the same problems and seeds, got "
            f"{stack_a.shape[:2]} and {stack_b.shape[:2]}; finish the runs first."
        )
    # Sums may be taken in different orders: rounding makes equal values equal.
    means_a = np.round(stack_a.mean((0, 1)), 12)
    means_b = np.round(stack_b.mean((0, 1)), 12)
    rate = scaling_rate(budgets_a, means_a, budgets_b, means_b, envelope=envelope)
    weights = cluster_weights(seed, num_replicates, *stack_a.shape[:2])
    curves_a = np.round(bootstrap_accuracies(weights, stack_a), 12)
    curves_b = np.round(bootstrap_accuracies(weights, stack_b), 12)
    replicates = scaling_rate(
        budgets_a, curves_a, budgets_b, curves_b, envelope=envelope
    )
    at_grid = _rates_at(
        budgets_a, curves_a, budgets_b, curves_b, rate.accuracies, envelope
    )
    return RateEstimate(
        rate=rate,
        mean=_interval(replicates.mean, level),
        top=_interval(replicates.top, level),
        curve=[_interval(column, level) for column in at_grid.T],
        fraction_shared=float(np.isfinite(replicates.mean).mean()),
    )


def _stack(correct: Curve) -> tuple[np.ndarray, np.ndarray]:
    budgets, tables = zip(*sorted(correct.items()), strict=True)
    stack = np.stack([np.asarray(table, np.float64) for table in tables], axis=-1)
    return np.array(budgets, np.float64), stack


def _rates_at(
    budgets_a: np.ndarray,
    curves_a: np.ndarray,
    budgets_b: np.ndarray,
    curves_b: np.ndarray,
    accuracies: np.ndarray,
    envelope: Envelope,
) -> np.ndarray:
    """Rates of the replicates at fixed accuracies, NaN outside a replicate's range."""
    log_rates = log_budget_needed(np.log(budgets_b), curves_b, accuracies, envelope)
    log_rates = log_rates - log_budget_needed(
        np.log(budgets_a), curves_a, accuracies, envelope
    )
    is_shared = is_in_range(curves_a, curves_b, accuracies, envelope)
    return np.where(is_shared, np.exp(log_rates), np.nan)


def _interval(values: np.ndarray, level: float) -> Interval:
    values = values[np.isfinite(values)]
    if values.size < 20:
        return Interval(float("nan"), float("nan"))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return Interval(float(low), float(high))
