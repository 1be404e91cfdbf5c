"""The statistics of a run as JSON values; NaN is null."""

from collections.abc import Mapping, Sequence
from typing import Any

from tsi.experiments.reports.comparisons import Comparison
from tsi.experiments.rows.rows import round_finite
from tsi.experiments.statistics.bootstrap import RateEstimate
from tsi.experiments.statistics.calibration import Calibration


def comparisons_as_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparisons, with the number of them for which p-values are adjusted."""
    return [
        {
            "method": comparison.method,
            "against": comparison.against,
            "budget": comparison.budget,
            "difference": round_finite(comparison.result.difference),
            "error": round_finite(comparison.result.error),
            "interval": list(map(round_finite, comparison.result.interval)),
            "only_first": comparison.result.only_a,
            "only_second": comparison.result.only_b,
            "num_pairs": comparison.result.num_pairs,
            "p_value": round_finite(comparison.result.p_value),
            "p_value_holm": round_finite(comparison.adjusted),
            "num_comparisons": len(comparisons),
            "problems_for_5_points": comparison.needed,
        }
        for comparison in comparisons
    ]


def calibrations_as_json(
    calibrations: Mapping[str, Calibration],
) -> list[dict[str, Any]]:
    """Calibration of each method, with its reliability curve."""
    return [
        {
            "method": method,
            "ece": round_finite(values.ece),
            "ece_interval": list(map(round_finite, values.ece_interval)),
            "ece_if_calibrated": round_finite(values.ece_if_calibrated),
            "rms_error": round_finite(values.rms_error),
            "brier": round_finite(values.brier),
            "log_score": round_finite(values.log_score),
            "right_log_score": round_finite(values.right_log_score),
            "selective": list(map(round_finite, values.selective)),
            "selective_area": round_finite(values.selective_area),
            "bins": [
                {
                    "size": bin.size,
                    "probability": round_finite(bin.probability),
                    "accuracy": round_finite(bin.accuracy),
                    "interval": list(map(round_finite, bin.interval)),
                }
                for bin in values.bins
            ],
        }
        for method, values in calibrations.items()
    ]


def pass_as_json(rates: Mapping[int, tuple[float, float]]) -> list[dict[str, Any]]:
    """pass@k and its standard error for each k."""
    return [
        {"k": k, "pass": round_finite(mean), "error": round_finite(error)}
        for k, (mean, error) in rates.items()
    ]


def rates_as_json(
    rates: Mapping[tuple[str, str], RateEstimate],
) -> list[dict[str, Any]]:
    """The scaling rates, with the rate at each accuracy."""
    return [
        {
            "method": a,
            "against": b,
            "mean": round_finite(estimate.rate.mean),
            "mean_interval": list(map(round_finite, estimate.mean)),
            "top": round_finite(estimate.rate.top),
            "top_interval": list(map(round_finite, estimate.top)),
            "curve": [
                {
                    "accuracy": round_finite(at),
                    "rate": round_finite(rate),
                    "interval": list(map(round_finite, interval)),
                }
                for at, rate, interval in zip(
                    estimate.rate.accuracies,
                    estimate.rate.rates,
                    estimate.curve,
                    strict=True,
                )
            ],
            "fraction_shared": estimate.fraction_shared,
        }
        for (a, b), estimate in rates.items()
    ]
