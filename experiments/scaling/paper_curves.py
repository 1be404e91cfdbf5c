"""The published curves of arXiv 2502.01618, figure 2, and their scaling rates."""

import json
from importlib import resources

import numpy as np

from tsi.errors import UnknownNameError
from tsi.experiments.statistics.scaling_rate import ScalingRate, scaling_rate


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
