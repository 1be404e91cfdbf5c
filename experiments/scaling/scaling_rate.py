r"""Scaling rate: the factor by which one method needs more budget than another.

For a curve of accuracy against budget, let b(a) be the smallest budget at which the
running maximum of the accuracy, interpolated linearly in log budget, reaches a. The
scaling rate of method A over method B at accuracy a is

    rate(a) = b_B(a) / b_A(a),

which is larger than one where A needs less. It varies with a, so it is reported as a
curve, as its geometric mean over the common accuracy range, and at the top of that
range. The common range goes from the larger of the two curves' first accuracies to the
smaller of their maxima. log rate is piecewise linear in a, so the mean is computed
exactly: the sum over pieces of width times the value at the midpoint.

The running maximum of noisy accuracies is biased upwards for both methods; the
intervals of `bootstrap.py` include that noise.

Reference: the "4-16x" of Puri et al. 2025, arXiv 2502.01618, figure 2, which is read
from the figure at single accuracies; the paper defines no estimator.
"""

import json
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

from tsi.errors import ConfigurationError, UnknownNameError


class ScalingRate(NamedTuple):
    """The factor by accuracy; NaN if the curves have no common accuracy range.

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
) -> Float[np.ndarray, "... M"]:
    """Log of the smallest budget at which the running maximum reaches each target.

    Args:
        log_budgets: increasing.
        accuracies: one curve, or a batch of them.
        targets: accuracies to reach. Targets below the curve give the first budget, and
            targets above it the last one; callers stay within the common range.
    """
    best = np.maximum.accumulate(accuracies, axis=-1)
    # The first point at or above the target: on a flat piece, its beginning.
    upper = (best[..., None, :] < targets[..., :, None]).sum(-1)
    upper = np.minimum(upper, log_budgets.size - 1)
    lower = np.maximum(upper - 1, 0)
    best = np.broadcast_to(best, (*upper.shape[:-1], log_budgets.size))
    below = np.take_along_axis(best, lower, -1)
    rise = np.take_along_axis(best, upper, -1) - below
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
) -> ScalingRate:
    """How many times the budget of A method B needs for equal accuracy.

    Args:
        budgets_a: increasing positive budgets of A in any unit (rollouts, FLOPs).
        accuracies_a: accuracy of A at each budget; leading axes are a batch.
        budgets_b: the same for B, in the same unit.
        accuracies_b: the same for B.
        num_points: number of points of the reported curve.

    Raises:
        ConfigurationError: the budgets are not positive and increasing.
    """
    log_a, log_b = _log_budgets(budgets_a), _log_budgets(budgets_b)
    best_a = np.maximum.accumulate(np.asarray(accuracies_a, np.float64), axis=-1)
    best_b = np.maximum.accumulate(np.asarray(accuracies_b, np.float64), axis=-1)
    low = np.maximum(best_a[..., 0], best_b[..., 0])
    high = np.minimum(best_a[..., -1], best_b[..., -1])
    is_shared = high >= low

    def log_rate(targets: np.ndarray) -> np.ndarray:
        return log_budget_needed(log_b, best_b, targets) - log_budget_needed(
            log_a, best_a, targets
        )

    grid = np.linspace(low, high, num_points, axis=-1)
    # log_rate is linear between neighbouring knots of the two curves.
    knots = np.clip(_join(best_a, best_b), low[..., None], high[..., None])
    knots = np.sort(knots, axis=-1)
    widths = np.diff(knots, axis=-1)
    pieces = log_rate((knots[..., 1:] + knots[..., :-1]) / 2)
    total = high - low
    log_top = log_rate(high[..., None])[..., 0]
    # A range of a single accuracy has no width: its mean is its only value.
    log_mean = np.divide(
        (widths * pieces).sum(-1), total, out=log_top.copy(), where=total > 0
    )
    nan = np.where(is_shared, 0.0, np.nan)
    return ScalingRate(
        accuracies=grid + nan[..., None],
        rates=np.exp(log_rate(grid) + nan[..., None]),
        mean=np.exp(log_mean + nan),
        top=np.exp(log_top + nan),
    )


def _join(best_a: np.ndarray, best_b: np.ndarray) -> np.ndarray:
    batch = np.broadcast_shapes(best_a.shape[:-1], best_b.shape[:-1])
    return np.concatenate(
        [np.broadcast_to(best, (*batch, best.shape[-1])) for best in (best_a, best_b)],
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


def paper_curves() -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Budgets and accuracies on MATH500 of arXiv 2502.01618, figure 2, by model.

    Returns:
        model -> method -> (budgets, accuracies); DVTS starts at budget 4.
    """
    file = resources.files("tsi.experiments") / "data" / "paper_curves.json"
    curves = json.loads(file.read_text())["fig2_MATH500"]
    return {
        model: dict(_named_curve(*item) for item in methods.items())
        for model, methods in curves.items()
    }


def paper_scaling_rate(model: str, method: str, against: str) -> ScalingRate:
    """Scaling rate of the paper's `method` over `against`, for example PF over DVTS.

    Raises:
        UnknownNameError: the paper has no such model or curve.
    """
    curves = paper_curves()
    if model not in curves:
        raise UnknownNameError("model in the paper's figure", model, curves)
    for name in (method, against):
        if name not in curves[model]:
            raise UnknownNameError("curve in the paper's figure", name, curves[model])
    return scaling_rate(*curves[model][method], *curves[model][against])


def _named_curve(name: str, accuracies: list[float]) -> tuple[str, tuple]:
    method, _, first = name.partition("_from")
    budgets = int(first or 1) * 2.0 ** np.arange(len(accuracies))
    return method, (budgets, np.array(accuracies))
