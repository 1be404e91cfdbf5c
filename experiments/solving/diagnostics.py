"""Plots of one result: its genealogy, effective sample size and weights.

In the genealogy every step is a column and every particle a row of it. Children are in
the order of their parents, so that no branches cross.
"""

import math
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tsi.accuracy.degeneracy import lineages
from tsi.accuracy.diagnostics import normalise
from tsi.accuracy.pareto import UNRELIABLE_K
from tsi.errors import ConfigurationError
from tsi.experiments.scaling.plots import RC
from tsi.experiments.solving.solve import shorten
from tsi.models.files import replace_file
from tsi.results.result import Result

# Okabe and Ito's vermilion and blue, and a light grey.
SELECTED, ALIVE, DEAD = "#D55E00", "#0072B2", "#D0D0D0"

MAX_LABELLED = 64
"""With more particles than this, texts would be too small to read and are left out."""


def save_figures(result: Result, folder: Path) -> list[Path]:
    """Write all figures as PNG files.

    Args:
        result: of one problem.
        folder: created if it does not exist.

    Returns:
        The files: ess.png, weights.png, and genealogy.png if steps are kept.
    """
    figures = {"ess": ess_figure, "weights": weights_figure}
    if _has_tree(result):
        figures["genealogy"] = genealogy_figure
    paths = []
    for name, draw in figures.items():
        paths.append(folder / f"{name}.png")
        with replace_file(paths[-1]) as place:
            draw(result).savefig(place, dpi=RC["savefig.dpi"])
    return paths


def genealogy_figure(result: Result) -> Figure:
    """The tree of all particles, with the texts of their steps.

    Lineages that end in the selected answer are vermilion, other surviving lineages
    blue, and branches without final descendants grey. The answer and weight of each
    final particle are on the right.

    Raises:
        ConfigurationError: the result does not keep the texts of its steps.
    """
    if not _has_tree(result):
        raise ConfigurationError(
            f"The result of problem {result.problem_id!r} does not keep the texts of "
            "its steps, so its tree cannot be drawn. Run the sampler in an engine, "
            "which keeps them."
        )
    ancestors = result.steps.ancestors
    num_steps, size = ancestors.shape
    slots = lineages(ancestors)
    is_selected = np.array(
        [answer is not None and answer == result.selected for answer in result.answers]
    )
    alive, selected = (
        _mark_ancestors(slots, np.ones(size, bool)),
        _mark_ancestors(slots, is_selected),
    )
    rows = _planar_rows(ancestors, alive)
    has_labels = size <= MAX_LABELLED
    with matplotlib.rc_context(RC):
        figure = Figure(
            figsize=(1.35 * num_steps + 3.2, 0.3 * min(size, MAX_LABELLED) + 1.2),
            layout="constrained",
        )
        axes = figure.subplots()
        _branches(axes, ancestors, rows, alive, selected)
        if has_labels:
            _step_labels(axes, result, slots, rows, selected)
            _final_labels(axes, result, rows[-1], is_selected)
        axes.set_xlim(-0.1, num_steps + (1.6 if has_labels else 0.1))
        # The first row is at the top; texts are above their line.
        axes.set_ylim(size - 0.3, -1.0)
        axes.set_xticks(np.arange(num_steps) + 0.35, np.arange(num_steps).astype(str))
        axes.set_yticks([])
        axes.set_xlabel("step", loc="left")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.set_title(
            f"{len(np.unique(ancestors[0][slots[0]]))} of {size} first steps survive; "
            f"selected answer: {result.selected}{_unanswered_text(result)}",
            loc="left",
        )
    return figure


def ess_figure(result: Result) -> Figure:
    """Effective sample size by step, and rewards by step if they are kept."""
    history, size = result.steps, len(result.texts)
    steps, rewards = np.arange(len(history.ess)), history.rewards
    with matplotlib.rc_context(RC):
        panels = 1 if rewards is None else 2
        figure = Figure(figsize=(7, 2.6 * panels + 0.4), layout="constrained")
        axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
        has_ess = not np.isnan(history.ess).all()
        title = f"N = {size}" if has_ess else f"N = {size}, no weighted sample"
        if history.resampled is not None:
            title += "; dotted: resampled before the step"
            for t in np.flatnonzero(history.resampled):
                axes[0].axvline(t - 0.5, color="#999999", linestyle=":", zorder=0)
        axes[0].plot(steps, history.ess, color=ALIVE, marker="o")
        axes[0].axhline(size, color="#999999", linewidth=0.8)
        axes[0].set_ylim(0, 1.08 * size)
        axes[0].set_ylabel("effective sample size")
        axes[0].set_title(title, loc="left")
        if rewards is not None:
            times = np.repeat(np.arange(len(rewards)), size)
            axes[1].scatter(times, rewards.ravel(), s=12, color=ALIVE, alpha=0.3)
            axes[1].plot(rewards.mean(axis=1), color=SELECTED, label="mean")
            axes[1].plot(rewards.max(axis=1), color="#000000", label="highest")
            axes[1].set_ylim(-0.03, 1.03)
            axes[1].set_ylabel("reward")
            axes[1].legend(loc="best")
        axes[-1].set_xticks(steps)
        axes[-1].set_xlabel("turn" if history.resampled is None else "step")
    return figure


def weights_figure(result: Result) -> Figure:
    """Histogram of the normalised weights of the final particles, with Pareto k."""
    weights = normalise(result.log_weights)
    k = result.diagnostics.pareto_k
    if math.isnan(k):
        tail = "Pareto k not estimated"
    else:
        verdict = "unreliable" if k > UNRELIABLE_K else "fine"
        tail = f"Pareto k = {k:.2f} ({verdict}; limit {UNRELIABLE_K})"
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        top = max(float(weights.max()), 2 / weights.size)
        axes.hist(weights, bins=np.linspace(0, top, 31).tolist(), color=ALIVE)
        axes.axvline(1 / weights.size, color="#000000", linestyle=":")
        axes.annotate(
            "1/N",
            (1 / weights.size, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -10),
            textcoords="offset points",
        )
        axes.set_xlabel("normalised weight")
        axes.set_ylabel("particles")
        has_ess = not np.isnan(result.steps.ess).all()
        size = f"{1 / np.sum(weights**2):.1f}" if has_ess else "–"
        axes.set_title(f"{tail}; ESS {size}{_unanswered_text(result)}", loc="left")
    return figure


def _unanswered_text(result: Result) -> str:
    share = result.unanswered
    return f"; no answer: {share:.3f} of the weight" if share > 0 else ""


def _has_tree(result: Result) -> bool:
    return result.particles.step_texts is not None


def _mark_ancestors(
    slots: Int[np.ndarray, "T N"], is_selected: Bool[np.ndarray, "N"]
) -> Bool[np.ndarray, "T N"]:
    """Which particles of each step have a selected final descendant."""
    marks = np.zeros(slots.shape, bool)
    for t, row in enumerate(slots):
        marks[t, row[is_selected]] = True
    return marks


def _planar_rows(
    ancestors: Int[np.ndarray, "T N"], alive: Bool[np.ndarray, "T N"]
) -> Int[np.ndarray, "T N"]:
    """Row of each particle: sorted by the parent's row, then survivors first."""
    rows = np.empty_like(ancestors)
    # Particles of step 0 have no parents.
    parent_rows = np.zeros(ancestors.shape[1], ancestors.dtype)
    for t, parents in enumerate(ancestors):
        order = np.lexsort((np.arange(parents.size), ~alive[t], parent_rows[parents]))
        rows[t, order] = np.arange(parents.size)
        parent_rows = rows[t]
    return rows


def _branches(
    axes: Axes,
    ancestors: Int[np.ndarray, "T N"],
    rows: Int[np.ndarray, "T N"],
    alive: Bool[np.ndarray, "T N"],
    selected: Bool[np.ndarray, "T N"],
) -> None:
    num_steps, size = ancestors.shape
    lines: dict[str, list] = {DEAD: [], ALIVE: [], SELECTED: []}
    for t in range(num_steps):
        for n in range(size):
            colour = SELECTED if selected[t, n] else ALIVE if alive[t, n] else DEAD
            y = rows[t, n]
            path = [(t, y), (t + 0.8, y)]
            if t > 0:
                path.insert(0, (t - 0.2, rows[t - 1, ancestors[t, n]]))
            lines[colour].append(path)
    for z, (colour, paths) in enumerate(lines.items()):
        width = 0.8 if colour == DEAD else 1.3
        axes.add_collection(
            LineCollection(paths, colors=colour, linewidths=width, zorder=z + 1)
        )


def _step_labels(
    axes: Axes,
    result: Result,
    slots: Int[np.ndarray, "T N"],
    rows: Int[np.ndarray, "T N"],
    selected: Bool[np.ndarray, "T N"],
) -> None:
    step_texts = result.particles.step_texts
    assert step_texts is not None
    for t, row in enumerate(slots):
        for n in np.unique(row):
            steps = step_texts[int(np.flatnonzero(row == n)[0])]
            # A finished particle is kept without a new step.
            if t < len(steps):
                colour = SELECTED if selected[t, n] else "#222222"
                _text(axes, t, rows[t, n], shorten(steps[t], 15), colour, size=7)


def _final_labels(
    axes: Axes,
    result: Result,
    rows: Int[np.ndarray, "N"],
    is_selected: Bool[np.ndarray, "N"],
) -> None:
    weights = normalise(result.log_weights)
    for n, answer in enumerate(result.answers):
        name = "no answer" if answer is None else shorten(answer, 14)
        text = f"{name}   weight {weights[n]:.3f}"
        colour = SELECTED if is_selected[n] else "#222222"
        axes.text(
            len(result.steps.ancestors) - 0.1,
            rows[n],
            _escape(text),
            color=colour,
            fontsize=8,
            va="center",
        )


def _text(
    axes: Axes, x: int, y: int | np.integer, text: str, colour: str, size: int
) -> None:
    axes.annotate(
        _escape(text),
        (x, y),
        xytext=(1, 2.5),
        textcoords="offset points",
        fontsize=size,
        color=colour,
        family="monospace",
        zorder=5,
    )


def _escape(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
