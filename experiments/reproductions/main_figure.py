"""Particle filtering needs 4 to 16 times fewer rollouts than search at equal accuracy.

Source: Puri et al. 2025, arXiv 2502.01618, figure 2 and table 1 (MATH500).
Expected, in percent at N = 64: particle filter 59.6, 74.4, 85.4, 87.0 for the four
policies; DVTS 52.8, 65.7, 83.4, 85.4; weighted best-of-N 47.8, 59.0, 82.8, 84.6. The
scaling rates that follow from the published curves are between 1.1 and 4.3 (`tsi
paper`); the published runs have no error bars.
Cost: four policies x 500 problems x 9 methods x 255 rollouts of about 600 tokens: days
on one H200; `--dry-run` says how long on yours. Small: 5 minutes on 2
cores, with 100 problems of each task: a standard error is about 5 points.
Command: tsi reproduce main_figure [--small]
"""

from collections.abc import Mapping
from pathlib import Path

from tsi.experiments.reports.curves import Curves
from tsi.experiments.reports.paper_curves import published_curves
from tsi.experiments.reports.plots import save_accuracy_plots
from tsi.experiments.reproductions.published_models import (
    EMBEDDED_TASKS,
    POLICIES,
    embedded_experiment,
    published_experiment,
)

FULL = [published_experiment(name, policy) for name, policy in POLICIES.items()]
SMALL = [embedded_experiment(task, task, num_problems=100) for task in EMBEDDED_TASKS]


def draw(curves: Mapping[str, Curves], folder: Path) -> list[Path]:
    """Draw the curves of each embedded task, and the published ones in grey behind.

    The published ones are of MATH500: their shapes can be compared, but not their
    heights.

    Args:
        curves: of each experiment, by its name.
        folder: for the figures.
    """
    paths = []
    for task in EMBEDDED_TASKS:
        names = [folder / f"{task}_published.{suffix}" for suffix in ("png", "pdf")]
        title = f"{task} with the embedded models; in grey MATH500, as published"
        behind = published_curves("Llama-3.2-1B")
        save_accuracy_plots(curves[task], "rollouts", title, names, published=behind)
        paths += names
    return paths
