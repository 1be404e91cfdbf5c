"""The reliability curve: share of right answers against their posterior probability."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from tsi.experiments.plans.methods import get_method
from tsi.experiments.reports.plots import PAPER_WIDTH, RC, save, styles_of
from tsi.experiments.statistics.calibration import NUM_BINS, Calibration

NOTE = (
    f"Runs in {NUM_BINS} bins of equal width, at their mean probability. Bars: 95 % "
    "Wilson intervals, as if runs\nwere independent. Area of a marker: share of the "
    "runs in its bin. Below the diagonal a method is overconfident."
)


def save_reliability_plot(
    calibrations: Mapping[str, Calibration], title: str, paths: Sequence[Path]
) -> None:
    """Draw the reliability curve of each method, with the diagonal.

    Args:
        calibrations: calibration of each method.
        title: of the figure.
        paths: of the files, whose suffixes are their formats.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(PAPER_WIDTH, 4.4))
        figure.subplots_adjust(left=0.08, right=0.7, bottom=0.2, top=0.93)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#9aa0a6", linewidth=1, label="calibrated")
        styles = styles_of(calibrations)
        for method, values in calibrations.items():
            colour, marker, line = styles[method]
            x = [bin.probability for bin in values.bins]
            y = [bin.accuracy for bin in values.bins]
            lows = [bin.accuracy - bin.interval.low for bin in values.bins]
            highs = [bin.interval.high - bin.accuracy for bin in values.bins]
            number = sum(bin.size for bin in values.bins)
            axes.errorbar(
                x,
                y,
                [lows, highs],
                color=colour,
                marker=marker,
                markersize=3,
                linestyle=line,
                linewidth=1.1,
                elinewidth=0.6,
                ecolor=to_rgba(colour, 0.4),
                label=get_method(method).label,
            )
            areas = [6 + 120 * bin.size / number for bin in values.bins]
            axes.scatter(x, y, areas, color=colour, marker=marker, linewidths=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("posterior probability of the selected answer")
        axes.set_ylabel("share that is right")
        axes.set_title(title, loc="left")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5)
        figure.text(0.01, 0.01, NOTE, fontsize=6.5, color="#555555", va="bottom")
        for path in paths:
            save(figure, path)
