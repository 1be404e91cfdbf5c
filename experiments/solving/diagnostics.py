"""Plots of one result: its genealogy, effective sample size and weights.

In the genealogy every step is a column, and equal prefixes are one branch. Children are
next to their parents, so that branches do not cross.
"""

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tsi.accuracy.diagnostics import probabilities_of
from tsi.accuracy.pareto import UNRELIABLE_K
from tsi.errors import ConfigurationError
from tsi.experiments.reports.plots import PAPER_WIDTH, RC, save
from tsi.experiments.solving.merged_tree import Node, merged_tree
from tsi.experiments.solving.solve import shorten
from tsi.results.result import Result

# Okabe and Ito's vermilion and blue, and a light grey.
SELECTED, ALIVE, DEAD = "#D55E00", "#0072B2", "#D0D0D0"

MAX_LABELLED = 64
"""With more branches than this, texts would be too small to read and are left out."""

MAX_CHARACTERS = 26
"""Longer texts of steps are cut in the genealogy."""


def save_figures(result: Result, folder: Path) -> list[Path]:
    """Write all figures as PNG and PDF files.

    Args:
        result: of one problem.
        folder: created if it does not exist.

    Returns:
        The files: ess, weights, and genealogy if steps are kept.
    """
    figures = {"ess": ess_figure, "weights": weights_figure}
    if _has_tree(result):
        figures["genealogy"] = genealogy_figure
    paths = []
    for name, draw in figures.items():
        figure = draw(result)
        for suffix in ("png", "pdf"):
            paths.append(folder / f"{name}.{suffix}")
            with matplotlib.rc_context(RC):
                save(figure, paths[-1])
    return paths


def genealogy_figure(result: Result) -> Figure:
    """The tree of all particles, with the texts and rewards of their steps.

    Branches that end in the selected answer are vermilion, other surviving branches
    blue, and branches without final descendants grey. Answer, weight and reward are at
    the end of each branch.

    Raises:
        ConfigurationError: the result does not keep the texts of its steps.
    """
    step_texts = result.particles.step_texts
    if step_texts is None:
        raise ConfigurationError(
            f"The result of problem {result.problem_id!r} does not keep the texts of "
            "its steps, so its tree cannot be drawn. Run the sampler in an engine, "
            "which keeps them."
        )
    ancestors, rewards = result.steps.ancestors, result.steps.rewards
    nodes = merged_tree(ancestors, step_texts, rewards)
    num_rows = 1 + max((node.row for node in nodes), default=0)
    has_labels = num_rows <= MAX_LABELLED
    left_edges = (
        _columns(nodes, len(ancestors))
        if has_labels
        else _equal_columns(len(ancestors))
    )
    # Inches: a row has a text above its line and a reward below it.
    row_height = 0.3 if has_labels else 0.06
    end = 2.3 if has_labels else 0.3
    width = max(left_edges[-1] + end, PAPER_WIDTH)
    height = num_rows * row_height + 1.15
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes(
            (0.1 / width, 0.5 / height, 1 - 0.2 / width, 1 - 1.07 / height)
        )
        _draw_branches(axes, result, nodes, left_edges)
        if has_labels:
            _label_nodes(axes, result, nodes, left_edges)
        # One unit is an inch.
        axes.set_xlim(-0.02, width - 0.22)
        axes.set_ylim(num_rows - 0.35, -0.8)
        steps = [f"step {t}" for t in range(len(ancestors))]
        axes.set_xticks(left_edges[:-1], steps, ha="left")
        axes.set_yticks([])
        if has_labels:
            note = "×n: n equal particles; r: their mean reward"
            axes.set_xlabel(note, loc="left", fontsize=6.5, color="#555555")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(False)
        survivors = len(
            {
                slot
                for node in nodes
                if not node.step and node.finals
                for slot in node.slots
            }
        )
        axes.set_title(
            f"{survivors} of {ancestors.shape[1]} first steps survive; "
            f"selected answer: {_escape(shorten(str(result.selected), 30))}"
            f"{_unanswered_text(result)}",
            loc="left",
            pad=20,
        )
        _legend(axes)
    return figure


def ess_figure(result: Result) -> Figure:
    """Effective sample size by step, and rewards by step if they are kept."""
    history, size = result.steps, len(result.texts)
    steps, rewards = np.arange(len(history.ess)), history.rewards
    with matplotlib.rc_context(RC):
        panels = 1 if rewards is None else 2
        figure = Figure(figsize=(PAPER_WIDTH, 2.7), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        has_ess = not np.isnan(history.ess).all()
        title = f"N = {size}" if has_ess else f"N = {size}, no weighted sample"
        if history.resampled is not None and history.resampled.any():
            title += "; dotted: resampled before the step"
            for t in np.flatnonzero(history.resampled):
                axes[0].axvline(t - 0.5, color="#999999", linestyle=":", zorder=0)
        axes[0].plot(steps, history.ess, color=ALIVE, marker="o", markersize=4)
        axes[0].axhline(size, color="#999999", linewidth=0.8)
        axes[0].set_ylim(0, 1.06 * size)
        axes[0].set_ylabel("effective sample size")
        axes[0].set_title(title, loc="left")
        if rewards is not None:
            # Particles of one step are spread, so that equal rewards can be counted.
            places = np.linspace(-0.25, 0.25, size) if size > 1 else np.zeros(1)
            times = np.arange(len(rewards))[:, None] + places
            axes[1].scatter(times, rewards, s=9, color=ALIVE, alpha=0.35, linewidths=0)
            axes[1].plot(rewards.mean(axis=1), color=SELECTED, label="mean")
            axes[1].plot(rewards.max(axis=1), color="#000000", label="highest")
            axes[1].set_ylabel("reward")
            axes[1].set_title("dots: particles", loc="left")
            axes[1].legend(loc="best")
        for panel in axes:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set_xlabel("turn" if history.resampled is None else "step")
    return figure


def weights_figure(result: Result) -> Figure:
    """The normalised weights of the final particles in order.

    The title has Pareto k if the particles are a weighted sample.
    """
    weights = probabilities_of(result.log_weights)
    k = result.diagnostics.pareto_k
    if not result.estimand.is_weighted_sample:
        tail = "not a weighted sample"
    elif math.isnan(k):
        tail = "Pareto k not estimated"
    else:
        verdict = "unreliable" if k > UNRELIABLE_K else "fine"
        tail = f"Pareto k = {k:.2f} ({verdict}; limit {UNRELIABLE_K})"
    order = np.argsort(-weights, kind="stable")
    colours = [_colour_of(result.answers[n], result.selected) for n in order]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(PAPER_WIDTH, 2.7), layout="constrained")
        axes = figure.subplots()
        ranks = np.arange(1, weights.size + 1)
        axes.bar(ranks, weights[order], width=0.85, color=colours)
        axes.axhline(1 / weights.size, color="#000000", linestyle=":", linewidth=1)
        axes.annotate(
            "1/N",
            (1.0, 1 / weights.size),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
        )
        axes.set_xlim(0.4, weights.size + 0.6)
        axes.set_xlabel("particles, by weight")
        axes.set_ylabel("normalised weight")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(
            handles=[
                Line2D([], [], color=colour, linewidth=5, label=label)
                for label, colour in {
                    "selected answer": SELECTED,
                    "other answers": ALIVE,
                    "no answer": DEAD,
                }.items()
            ]
        )
        has_ess = not np.isnan(result.steps.ess).all()
        size = f"{1 / np.sum(weights**2):.1f}" if has_ess else "–"
        axes.set_title(f"{tail}; ESS {size}{_unanswered_text(result)}", loc="left")
    return figure


def _colour_of(answer: str | None, selected: str | None) -> str:
    if answer is None:
        return DEAD
    return SELECTED if answer == selected else ALIVE


def _unanswered_text(result: Result) -> str:
    share = result.unanswered
    return f"; no answer: {share:.3f} of the weight" if share > 0 else ""


def _has_tree(result: Result) -> bool:
    return result.particles.step_texts is not None


def _columns(nodes: list[Node], num_steps: int) -> list[float]:
    """Left edge of each step's column in inches, and the end of the last one."""
    left_edges = [0.0]
    for t in range(num_steps):
        texts = [
            shorten(node.text or "", MAX_CHARACTERS) for node in nodes if node.step == t
        ]
        longest = max(map(len, texts), default=0)
        left_edges.append(left_edges[-1] + max(0.9, 0.3 + 0.062 * longest))
    return left_edges


def _equal_columns(num_steps: int) -> list[float]:
    width = (PAPER_WIDTH - 0.5) / num_steps
    return [t * width for t in range(num_steps + 1)]


def _is_selected(result: Result, node: Node) -> bool:
    answers = (result.answers[n] for n in node.finals)
    return any(a is not None and a == result.selected for a in answers)


def _node_colour(result: Result, node: Node) -> str:
    if not node.finals:
        return DEAD
    return SELECTED if _is_selected(result, node) else ALIVE


def _draw_branches(
    axes: Axes, result: Result, nodes: list[Node], left_edges: list[float]
) -> None:
    for node in nodes:
        colour = _node_colour(result, node)
        right = left_edges[node.step + 1] - 0.18
        if not node.finals:
            right = left_edges[node.step] + 0.3
        x, y = [left_edges[node.step], right], [node.row, node.row]
        if node.parent is not None:
            x.insert(0, left_edges[node.step] - 0.18)
            y.insert(0, nodes[node.parent].row)
        # A branch is as wide as the share of particles that pass through it.
        share = len(node.finals) / len(result.texts)
        rank = [DEAD, ALIVE, SELECTED].index(colour)
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=0.8 + 2.4 * share,
            zorder=rank + 1,
            solid_capstyle="round",
        )


def _label_nodes(
    axes: Axes, result: Result, nodes: list[Node], left_edges: list[float]
) -> None:
    weights = probabilities_of(result.log_weights)
    for node in nodes:
        left, number = left_edges[node.step], len(node.slots)
        # Number of equal particles, and their reward.
        facts = [f"×{number}"] if number > 1 else []
        if not math.isnan(node.reward):
            facts.append(f"r {node.reward:.2f}")
        below = " ".join(facts)
        if node.text is None:
            _text(axes, left + 0.33, node.row, below, "#8A8A8A", 6, va="center")
            continue
        colour = SELECTED if _is_selected(result, node) else "#222222"
        text = shorten(node.text, MAX_CHARACTERS)
        _text(axes, left + 0.02, node.row - 0.12, text, colour, 7, family="monospace")
        _text(axes, left + 0.02, node.row + 0.14, below, "#666666", 6, va="top")
        if node.ends:
            answer = result.answers[node.ends[0]]
            mass = float(sum(weights[n] for n in node.ends))
            name = "no answer" if answer is None else shorten(answer, 14)
            text = f"{name}   weight {mass:.3f}"
            right = left_edges[node.step + 1] - 0.1
            _text(axes, right, node.row, text, colour, 8, va="center")


def _text(
    axes: Axes,
    x: float,
    y: float | int,
    text: str,
    colour: str,
    size: float | int,
    **style: Any,
) -> None:
    style = {"va": "bottom"} | style
    axes.text(x, y, _escape(text), fontsize=size, color=colour, zorder=5, **style)


def _legend(axes: Axes) -> None:
    labels = {
        "leads to the selected answer": SELECTED,
        "survives": ALIVE,
        "has no descendants at the end": DEAD,
    }
    handles = [
        Line2D([], [], color=colour, linewidth=2, label=label)
        for label, colour in labels.items()
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        bbox_transform=axes.transAxes,
        ncols=3,
        borderaxespad=0.1,
        fontsize=7.5,
    )


def _escape(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
