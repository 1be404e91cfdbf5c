"""The published curves of arXiv 2502.01618, figure 2, and their scaling rates."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from tsi.errors import UnknownNameError
from tsi.experiments.statistics.scaling_rate import ScalingRate, scaling_rate

CITATION = "Grey: MATH500, Puri et al. 2025, arXiv 2502.01618, figure 2."
METHODS = {"PF": "particle_filter", "WBoN": "weighted_best_of_n", "DVTS": "dvts"}
"""The methods of the figure, by its names."""


class PublishedCurve(NamedTuple):
    """A published curve, which has no error bars.

    Attributes:
        label: the figure's name of the method, and the policy.
        method: the name of the method here.
        budgets: rollouts N.
        accuracies: from 0 to 1.
    """

    label: str
    method: str
    budgets: list[int]
    accuracies: list[float]


def published_curves(model: str) -> list[PublishedCurve]:
    """The published curves of a policy, to draw behind the curves of a run.

    Args:
        model: a policy of the figure, such as "Llama-3.2-1B".

    Raises:
        UnknownNameError: the figure has no such policy.
    """
    curves = paper_curves()
    if model not in curves:
        raise UnknownNameError("model in the paper's figure", model, curves)
    return [
        PublishedCurve(
            f"{name}, {model}, published",
            METHODS[name],
            [int(budget) for budget in budgets],
            [float(accuracy) for accuracy in accuracies],
        )
        for name, (budgets, accuracies) in curves[model].items()
    ]


def published_model(settings: Mapping[str, Any]) -> str | None:
    """The policy of the figure whose runs rows with these settings repeat.

    Returns:
        None if the task is not MATH-500 or the figure has no such policy.
    """
    if settings.get("task") != "math500":
        return None
    policy = str(settings.get("policy")).rpartition("/")[2].removesuffix("-Instruct")
    return policy if policy in paper_curves() else None


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
