"""Plots of accuracy against cost, in colours that colour-blind readers can distinguish.

Colours: Okabe and Ito, "Color universal design" (2008), and Paul Tol's muted scheme.
Methods also differ by marker and line, for prints in black and white.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsi.experiments.plans.methods import AT, METHODS, base_of, get_method
from tsi.experiments.reports.curves import UNITS, Curves, Point
from tsi.experiments.reports.paper_curves import CITATION, PublishedCurve
from tsi.experiments.statistics.accuracy import ONE_ERROR, accuracy_interval, has_few
from tsi.models.files import replace_file

# Searches are dashed, samplers solid, independent rollouts dotted.
STYLES: dict[str, tuple[str, str, str]] = {
    "greedy": ("#000000", "*", "none"),
    "self_consistency": ("#888888", "v", ":"),
    "best_of_n": ("#E69F00", "<", ":"),
    "weighted_best_of_n": ("#8C6D00", ">", ":"),
    "beam_search": ("#009E73", "s", "--"),
    "dvts": ("#0072B2", "D", "--"),
    "rebase": ("#882255", "P", "--"),
    "particle_filter": ("#D55E00", "o", "-"),
    "smc": ("#CC79A7", "^", "-"),
    "entropic_particle_filter": ("#56B4E9", "X", "-"),
}

# For the other methods, in turn: no two have the same colour and marker.
_COLOURS = ("#332288", "#117733", "#44AA99", "#88CCEE", "#999933", "#AA4499", "#661100")
_MARKERS = ("o", "s", "^", "D", "v", "P")

LINES = ("-", "--", ":", "-.")
"""Of the lowest temperature, the second lowest, and so on."""
MORE_MARKERS = ("d", "h", "p", "8")
"""In turn, once all lines are used."""

RC: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "font.size": 8,
    "axes.titlesize": 9,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}

PAPER_WIDTH = 6.75
"""Inches; the text of a page in two columns."""

SPREAD = 0.16
"""Points at one cost are moved by up to this much, as a share of the tick distance of
budgets that double."""

GREY = "#A8A8A8"
"""Of published curves, which have no error bars."""

BARS = (
    "Bars: ±1 standard error, clustered by problem (68 % Wilson intervals where fewer "
    "than ten problems are right or wrong)."
)
MOVED = (
    "Methods are moved by up to 12 % along the axis, so that they do not hide each "
    "other."
)


def save_accuracy_plots(
    curves: Curves,
    unit: str,
    title: str,
    paths: Sequence[Path],
    *,
    labels: Mapping[str, str] | None = None,
    published: Sequence[PublishedCurve] = (),
) -> None:
    """Draw accuracy against cost with error bars of one standard error.

    Args:
        curves: from `curves.curves_of`.
        unit: one of `curves.UNITS`.
        title: of the figure.
        paths: of the files, whose suffixes are their formats.
        labels: of methods, if not those of `Method.label`.
        published: curves in grey behind the others; only a figure by rollouts has them.
    """
    label, base = UNITS[unit]
    names = {method: get_method(method).label for method in curves}
    names.update(labels or {})
    with matplotlib.rc_context(RC):
        behind = published if unit == "rollouts" else ()
        legend = [*names.values(), *(line.label for line in behind)]
        figure, axes = _paper_figure(legend)
        for line in behind:
            _draw_behind(axes, line)
        # Measured seconds differ between methods, and so stay where they are.
        is_moved = unit != "seconds"
        shifts = spread(len(curves)) if is_moved else [1.0] * len(curves)
        styles = styles_of(curves)
        for (method, curve), shift in zip(curves.items(), shifts, strict=True):
            points = list(curve.values())
            _draw(axes, styles[method], names[method], points, unit, shift)
        axes.set_xscale("log", base=base)
        if unit == "rollouts":
            own_budgets = {budget for curve in curves.values() for budget in curve}
            budgets = sorted(own_budgets.union(*(line.budgets for line in behind)))
            axes.set_xticks(budgets, [str(budget) for budget in budgets])
            axes.set_xticks([], minor=True)
        elif base == 2:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy (%)")
        axes.set_title(title, loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5)
        note = f"{BARS}\n{MOVED}" if is_moved else BARS
        note += f" {CITATION}" if behind else ""
        figure.text(0.01, 0.01, note, fontsize=6.5, color="#555555", va="bottom")
        for path in paths:
            save(figure, path)


def _paper_figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with room for the legend and a note of two lines.

    Its margins are computed here, because matplotlib's layout takes longer than all of
    the drawing.
    """
    height = max(3.7, 1.0 + 0.165 * len(labels))
    figure = Figure(figsize=(PAPER_WIDTH, height))
    longest = max(map(len, labels), default=0)
    legend = min(0.5 + 0.062 * longest, PAPER_WIDTH / 2)
    figure.subplots_adjust(
        left=0.5 / PAPER_WIDTH,
        right=1 - legend / PAPER_WIDTH,
        bottom=0.82 / height,
        top=1 - 0.28 / height,
    )
    return figure, figure.subplots()


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same figure gives the same bytes."""
    # A PDF records the time, unless it is told not to.
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with replace_file(path) as place:
        figure.savefig(place, format=path.suffix[1:], metadata=metadata)


def has_costs(curves: Curves, unit: str) -> bool:
    """Whether a method has a known cost in the unit."""
    return any(
        math.isfinite(getattr(point, unit))
        for curve in curves.values()
        for point in curve.values()
    )


def spread(number: int) -> list[float]:
    """A factor for each of some methods, evenly spread on a logarithmic axis."""
    if number < 2:
        return [1.0] * number
    return [2 ** (SPREAD * (2 * i / (number - 1) - 1)) for i in range(number)]


def style_of(method: str) -> tuple[str, str, str]:
    """Colour, marker and line of a method, the same in every figure."""
    base = base_of(method)
    if base in STYLES:
        return STYLES[base]
    place = [name for name in METHODS if name not in STYLES].index(base)
    colour = _COLOURS[place % len(_COLOURS)]
    return colour, _MARKERS[place // len(_COLOURS)], "-."


def styles_of(methods: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Styles in a figure, in which the temperatures of methods differ by their lines.

    Args:
        methods: all of the figure.
    """
    styles = {name: style_of(name) for name in methods}
    temperature_of = {
        name: get_method(name).temperature or 0.0 for name in styles if AT in name
    }
    # A method without a temperature comes before those with one.
    temperature_of |= {
        base: 0.0 for base in map(base_of, temperature_of) if base in styles
    }
    temperatures = sorted({*temperature_of.values()})
    for name, temperature in temperature_of.items():
        colour, marker, _ = styles[name]
        rank = temperatures.index(temperature)
        if rank >= len(LINES):
            marker = MORE_MARKERS[rank // len(LINES) % len(MORE_MARKERS)]
        styles[name] = colour, marker, LINES[rank % len(LINES)]
    return styles


def bar(point: Point) -> tuple[float, float]:
    """Lengths of the bar below and above a point, of one standard error."""
    if has_few(point.expected):
        low, high = accuracy_interval(point.expected, ONE_ERROR)
        return point.accuracy - low, high - point.accuracy
    return point.error, point.error


def _draw_behind(axes: Axes, curve: PublishedCurve) -> None:
    """Draw a published curve in grey, with the marker and line of its method."""
    _, marker, line = style_of(curve.method)
    axes.plot(
        curve.budgets,
        [100 * accuracy for accuracy in curve.accuracies],
        label=curve.label,
        color=GREY,
        marker=marker,
        linestyle=line,
        markersize=3,
        linewidth=0.9,
        zorder=1,
    )


def _draw(
    axes: Axes,
    style: tuple[str, str, str],
    label: str,
    points: list[Point],
    unit: str,
    shift: float,
) -> None:
    colour, marker, line = style
    points = [point for point in points if math.isfinite(getattr(point, unit))]
    if not points:
        return
    below, above = zip(*map(bar, points), strict=True)
    axes.errorbar(
        [getattr(point, unit) * shift for point in points],
        [100 * point.accuracy for point in points],
        [[100 * x for x in below], [100 * x for x in above]],
        label=label,
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=4,
        linewidth=1.1,
        elinewidth=0.7,
        capsize=1.5,
    )
