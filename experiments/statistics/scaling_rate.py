r"""Scaling rate: the factor by which one method needs more budget than another.

For a curve of accuracy against budget, let b(a) be the smallest budget at which the
curve, interpolated linearly in log budget, reaches a. The scaling rate of method A over
method B at accuracy a is

    rate(a) = b_B(a) / b_A(a),

which is larger than one where A needs less. It varies with a, so it is reported as a
curve, as its geometric mean over the common accuracy range, and at the top of that
range. There are two envelopes, which agree where both curves rise:

- *running maximum*: the curve is the best accuracy up to each budget, and the common
  range ends at the smaller of the two maxima. It says what a method can reach if its
  budget is chosen well. The maximum of noisy accuracies is biased upwards for both
  methods; the intervals of `bootstrap.py` include that noise.
- *raw*: the curve is the accuracy as measured, and the common range ends at the smaller
  of the two accuracies at the largest budgets. It describes what both methods reach
  there. A method whose accuracy returns to its first value has no rate.

Both ranges begin at the larger of the two first accuracies. A range without width has
no rate: the curves do not overlap, or nothing was learned.

log rate is piecewise linear in a, so the mean is computed exactly: the sum over pieces
of width times the value at the midpoint.

Reference: the "4-16x" of Puri et al. 2025, arXiv 2502.01618, figure 2, which is read
from the figure at single accuracies; the paper does not define an estimator.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real

from tsi.errors import ConfigurationError

Envelope = Literal["running_maximum", "raw"]


class ScalingRate(NamedTuple):
    """The factor by accuracy; NaN if the curves share no range of accuracies.

    Args:
        accuracies: grid over the common range, with both ends.
        rates: the factor at each accuracy.
        mean: geometric mean over the range.
        top: the factor at the top of the range.
    """

    accuracies: Float[np.ndarray, "... M"]
    rates: Float[np.ndarray, "... M"]
    mean: Float[np.ndarray, "..."]
    top: Float[np.ndarray, "..."]


def log_budget_needed(
    log_budgets: Float[np.ndarray, "K"],
    accuracies: Float[np.ndarray, "... K"],
    targets: Float[np.ndarray, "... M"],
    envelope: Envelope = "running_maximum",
) -> Float[np.ndarray, "... M"]:
    """Log of the smallest budget at which the curve reaches each target.

    Args:
        log_budgets: increasing.
        accuracies: one curve, or a batch of them.
        targets: accuracies to reach. Targets below the curve give the first budget, and
            targets above it the last one; callers stay within the common range.
        envelope: whether the curve is the running maximum or the raw accuracies.
    """
    best = np.maximum.accumulate(accuracies, axis=-1)
    # The first point at or above the target: on a flat piece, its beginning. It is the
    # same for both envelopes, and only the point before it differs.
    upper = (best[..., None, :] < targets[..., :, None]).sum(-1)
    upper = np.minimum(upper, log_budgets.size - 1)
    lower = np.maximum(upper - 1, 0)
    shape = (*upper.shape[:-1], log_budgets.size)
    starts = best if envelope == "running_maximum" else accuracies
    below = np.take_along_axis(np.broadcast_to(starts, shape), lower, -1)
    rise = np.take_along_axis(np.broadcast_to(best, shape), upper, -1) - below
    fraction = np.divide(
        targets - below, rise, out=np.ones(upper.shape), where=rise > 0
    )
    return log_budgets[lower] + np.clip(fraction, 0.0, 1.0) * (
        log_budgets[upper] - log_budgets[lower]
    )


def scaling_rate(
    budgets_a: Real[np.ndarray, "K"],
    accuracies_a: Real[np.ndarray, "*batch K"],
    budgets_b: Real[np.ndarray, "J"],
    accuracies_b: Real[np.ndarray, "*batch J"],
    num_points: int = 41,
    *,
    envelope: Envelope = "running_maximum",
) -> ScalingRate:
    """How many times the budget of A method B needs for equal accuracy.

    Args:
        budgets_a: increasing positive budgets of A in any unit (rollouts, FLOPs).
        accuracies_a: accuracy of A at each budget; leading axes are a batch.
        budgets_b: the same for B, in the same unit.
        accuracies_b: the same for B.
        num_points: number of points of the reported curve.
        envelope: "running_maximum" or "raw".

    Raises:
        ConfigurationError: the budgets are not positive and increasing.
    """
    log_a, log_b = _log_budgets(budgets_a), _log_budgets(budgets_b)
    curves_a = np.asarray(accuracies_a, np.float64)
    curves_b = np.asarray(accuracies_b, np.float64)
    low, high = common_range(curves_a, curves_b, envelope)
    is_shared = high > low

    def log_rate(targets: np.ndarray) -> np.ndarray:
        needed_b = log_budget_needed(log_b, curves_b, targets, envelope)
        return needed_b - log_budget_needed(log_a, curves_a, targets, envelope)

    grid = np.linspace(low, high, num_points, axis=-1)
    # log_rate is linear between neighbouring knots of the two curves.
    knots = np.clip(_join(curves_a, curves_b), low[..., None], high[..., None])
    knots = np.sort(knots, axis=-1)
    widths = np.diff(knots, axis=-1)
    pieces = log_rate((knots[..., 1:] + knots[..., :-1]) / 2)
    log_top = log_rate(high[..., None])[..., 0]
    log_mean = np.divide(
        (widths * pieces).sum(-1), high - low, out=log_top.copy(), where=is_shared
    )
    nan = np.where(is_shared, 0.0, np.nan)
    return ScalingRate(
        accuracies=grid + nan[..., None],
        rates=np.exp(log_rate(grid) + nan[..., None]),
        mean=np.exp(log_mean + nan),
        top=np.exp(log_top + nan),
    )


def common_range(
    accuracies_a: Float[np.ndarray, "... K"],
    accuracies_b: Float[np.ndarray, "... J"],
    envelope: Envelope,
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The lowest and highest accuracy that two curves share; empty if high < low."""
    low = np.maximum(accuracies_a[..., 0], accuracies_b[..., 0])
    if envelope == "running_maximum":
        high = np.minimum(accuracies_a.max(-1), accuracies_b.max(-1))
    else:
        high = np.minimum(accuracies_a[..., -1], accuracies_b[..., -1])
    return np.asarray(low), np.asarray(high)


def is_in_range(
    accuracies_a: Float[np.ndarray, "R K"],
    accuracies_b: Float[np.ndarray, "R J"],
    targets: Float[np.ndarray, "M"],
    envelope: Envelope,
) -> Bool[np.ndarray, "R M"]:
    """Whether each target lies in the common range of each pair of curves."""
    low, high = common_range(accuracies_a, accuracies_b, envelope)
    return (low[:, None] <= targets) & (targets <= high[:, None])


def _join(curves_a: np.ndarray, curves_b: np.ndarray) -> np.ndarray:
    batch = np.broadcast_shapes(curves_a.shape[:-1], curves_b.shape[:-1])
    return np.concatenate(
        [
            np.broadcast_to(curves, (*batch, curves.shape[-1]))
            for curves in (curves_a, curves_b)
        ],
        axis=-1,
    )


def _log_budgets(budgets: np.ndarray) -> np.ndarray:
    budgets = np.asarray(budgets, np.float64)
    if budgets.size == 0 or (budgets <= 0).any() or (np.diff(budgets) <= 0).any():
        raise ConfigurationError(
            f"Budgets {budgets.tolist()} are not positive and increasing; sort them "
            "and leave out repeats."
        )
    return np.log(budgets)
