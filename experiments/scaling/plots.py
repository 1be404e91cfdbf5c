"""Plots of accuracy against cost, in colours that colour-blind readers can distinguish.

Colours: Okabe and Ito, "Color universal design" (2008). Methods also differ by marker
and line, for prints in black and white.
"""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsi.experiments.scaling.methods import METHODS, get_method
from tsi.experiments.scaling.report import Curves
from tsi.models.files import replace_file

# Searches are dashed, samplers solid, independent rollouts dotted.
STYLES: dict[str, tuple[str, str, str]] = {
    "greedy": ("#000000", "*", "none"),
    "self_consistency": ("#999999", "v", ":"),
    "best_of_n": ("#E69F00", "<", ":"),
    "weighted_best_of_n": ("#8C6D00", ">", ":"),
    "beam_search": ("#009E73", "s", "--"),
    "dvts": ("#0072B2", "D", "--"),
    "rebase": ("#56B4E9", "P", "--"),
    "particle_filter": ("#D55E00", "o", "-"),
    "smc": ("#CC79A7", "^", "-"),
    "entropic_particle_filter": ("#882255", "X", "-"),
}

# For the other methods, in turn: no two have the same colour and marker.
_COLOURS = ("#332288", "#117733", "#44AA99", "#88CCEE", "#999933", "#AA4499", "#661100")
_MARKERS = ("o", "s", "^", "D", "v", "P")

RC: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "font.size": 10,
    "savefig.dpi": 160,
}


def save_accuracy_plot(curves: Curves, unit: str, title: str, path: Path) -> None:
    """Draw accuracy against cost with error bars of one standard error.

    Args:
        curves: from `report.curves_of`.
        unit: "rollouts" or "flops".
        title: of the figure.
        path: of the PNG file.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.subplots()
        for method, curve in curves.items():
            _draw(axes, method, curve, unit)
        axes.set_xscale("log", base=2 if unit == "rollouts" else 10)
        if unit == "rollouts":
            budgets = sorted({budget for curve in curves.values() for budget in curve})
            axes.set_xticks(budgets, [str(budget) for budget in budgets])
            axes.set_xlabel("rollouts N")
        else:
            axes.set_xlabel("model FLOPs per problem")
        axes.set_ylabel("accuracy (%)")
        axes.set_title(title, loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        with replace_file(path) as place:
            figure.savefig(place)


def style_of(method: str) -> tuple[str, str, str]:
    """Colour, marker and line of a method, the same in every figure."""
    if method in STYLES:
        return STYLES[method]
    place = [name for name in METHODS if name not in STYLES].index(method)
    colour = _COLOURS[place % len(_COLOURS)]
    return colour, _MARKERS[place // len(_COLOURS)], "-."


def _draw(axes: Axes, method: str, curve: dict, unit: str) -> None:
    colour, marker, line = style_of(method)
    costs = [b if unit == "rollouts" else point.flops for b, point in curve.items()]
    points = list(curve.values())
    axes.errorbar(
        costs,
        [100 * point.accuracy for point in points],
        [100 * point.error for point in points],
        label=get_method(method).label,
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=5,
        linewidth=1.4,
        elinewidth=0.8,
        capsize=2,
    )
