"""On hard problems the particle filter and the best search are compared fairly.

Claim under test: where samples are mostly wrong, resampling by the reward beats
searches that keep the best prefixes. The tasks are the longest chains and the Countdown
problems of four numbers. Each method is shown at its own best temperature, which was
chosen on validation problems (`tuned_temperature`), and all at temperature 1.
Source: none; the claim is this package's own question about arXiv 2502.01618.
Expected: not published. The paired difference of the particle filter and the best of
SMC, REBASE and DVTS is reported whatever it is.
Cost: the half on countdown_four took 4 minutes on 2 cores; --small changes nothing.
Command: tsi reproduce headline --small
"""

from collections.abc import Mapping

from tsi.experiments.reproductions.published_models import SMALL_BUDGETS, embedded
from tsi.experiments.scaling.comparisons import compare_with_best
from tsi.experiments.scaling.curves import Curves
from tsi.experiments.scaling.methods import get_method
from tsi.experiments.scaling.report import (
    BEST_TEXT,
    markdown,
    paired_table,
    paired_text,
    percent,
)

COMMON = 1.0
CHOSEN: dict[str, dict[str, float]] = {
    "chain_long": {
        "weighted_best_of_n": 1.0,
        "dvts": 0.7,
        "rebase": 0.7,
        "particle_filter": 0.4,
        "smc": 0.7,
    },
    "countdown_four": {
        "weighted_best_of_n": 0.7,
        "dvts": 0.7,
        "rebase": 0.4,
        "particle_filter": 0.4,
        "smc": 0.4,
    },
}
"""The best temperature of each method on validation problems."""

SMALL = [
    embedded(
        f"{task}-t{temperature}",
        task,
        methods=tuple(
            method for method, best in chosen.items() if temperature in (best, COMMON)
        ),
        temperature=temperature,
        num_problems=420,
    )
    for task, chosen in CHOSEN.items()
    for temperature in sorted({*chosen.values(), COMMON})
]
FULL = SMALL


def summarize(curves: Mapping[str, Curves]) -> str:
    """Accuracies and paired differences, at own temperatures and at the common one."""
    budget = max(SMALL_BUDGETS)
    parts = []
    for task, chosen in CHOSEN.items():
        common = dict.fromkeys(chosen, COMMON)
        for title, temperatures in (("its own", chosen), ("a common", common)):
            shown = {
                method: curves[f"{task}-t{temperature}"][method]
                for method, temperature in temperatures.items()
            }
            lines = [["method", "temperature", *[f"N = {n}" for n in SMALL_BUDGETS]]]
            for method, curve in shown.items():
                cells = [percent(curve[n]) for n in SMALL_BUDGETS]
                label = get_method(method).label
                lines.append([label, f"{temperatures[method]:g}", *cells])
            found = compare_with_best(shown, budget)
            parts += [
                f"{task}, each method at {title} temperature:",
                markdown(lines),
                paired_text(found),
                paired_table(found),
            ]
    return "\n\n".join([*parts, BEST_TEXT])
