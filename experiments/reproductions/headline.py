"""On hard problems the particle filter and the best search are compared fairly.

Claim under test: where samples are mostly wrong, resampling by the reward beats
searches that keep the best prefixes. The tasks are the longest chains and the Countdown
problems of four numbers; on the standard tasks most methods end near 68 %. Each method
is shown at its own best temperature, which was chosen on validation problems
(`tuned_temperature`). At the largest budget those that read the reward at each step are
shown at temperature 1, too.
Source: none; the claim is this package's own question about arXiv 2502.01618.
Expected: not published. The paired difference of the particle filter and the best of
SMC, REBASE and DVTS is reported whatever it is.
Cost: 131,000 rollouts, 6:44 on two quiet cores. To fit into 8 minutes 400 problems are
used, and at the common temperature the largest budget and no weighted best-of-N.
--small changes nothing.
Command: tsi reproduce headline (make curve)
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tsi.experiments.experiment import Experiment
from tsi.experiments.plans.methods import get_method
from tsi.experiments.reports.comparisons import compare_with_best
from tsi.experiments.reports.curves import Curves
from tsi.experiments.reports.plots import save_accuracy_plots
from tsi.experiments.reports.report import (
    BEST_TEXT,
    markdown,
    paired_table,
    paired_text,
    percent,
)
from tsi.experiments.reproductions.published_models import (
    SMALL_BUDGETS,
    embedded_experiment,
)

COMMON = 1.0
BUDGET = max(SMALL_BUDGETS)
NUM_PROBLEMS = 400
"""Standard errors are at most 2.5 points."""
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


STEPWISE = ("dvts", "rebase", "particle_filter", "smc")
"""The methods that are compared at the common temperature, too."""


def _name_at(task: str, temperature: float) -> str:
    return f"{task}-t{temperature}"


def _name_at_common_temperature(task: str) -> str:
    return f"{task}-common"


def _experiments(task: str) -> Iterator[Experiment]:
    """Each method at its own temperature, and the others at the common one."""
    temperatures = CHOSEN[task]
    for temperature in sorted({*temperatures.values()}):
        methods = tuple(
            name for name, best in temperatures.items() if best == temperature
        )
        yield embedded_experiment(
            _name_at(task, temperature),
            task,
            methods=methods,
            temperature=temperature,
            num_problems=NUM_PROBLEMS,
        )
    yield embedded_experiment(
        _name_at_common_temperature(task),
        task,
        methods=tuple(name for name in STEPWISE if temperatures[name] != COMMON),
        temperature=COMMON,
        budgets=(BUDGET,),
        num_problems=NUM_PROBLEMS,
    )


SMALL = [experiment for task in CHOSEN for experiment in _experiments(task)]
FULL = SMALL


def own_curves(curves: Mapping[str, Curves], task: str) -> Curves:
    """The curve of each method at its own temperature.

    Args:
        curves: of each experiment, by its name.
        task: one of `CHOSEN`.
    """
    return {
        method: curves[_name_at(task, temperature)][method]
        for method, temperature in CHOSEN[task].items()
    }


def common_curves(curves: Mapping[str, Curves], task: str) -> Curves:
    """The stepwise methods at the common temperature and the largest budget.

    Args:
        curves: of each experiment, by its name.
        task: one of `CHOSEN`.
    """
    selection = {}
    for method in STEPWISE:
        is_own = CHOSEN[task][method] == COMMON
        place = _name_at(task, COMMON) if is_own else _name_at_common_temperature(task)
        selection[method] = {BUDGET: curves[place][method][BUDGET]}
    return selection


def summarise(curves: Mapping[str, Curves]) -> str:
    """Accuracies and paired differences, at own temperatures and at the common one."""
    parts = []
    for task, best_temperatures in CHOSEN.items():
        common = dict.fromkeys(STEPWISE, COMMON)
        for title, temperatures, curves_shown in (
            ("its own", best_temperatures, own_curves(curves, task)),
            ("a common", common, common_curves(curves, task)),
        ):
            budgets = list(curves_shown["particle_filter"])
            lines = [["method", "temperature", *[f"N = {n}" for n in budgets]]]
            for method, curve in curves_shown.items():
                cells = [percent(curve[n]) for n in budgets]
                label = get_method(method).label
                lines.append([label, f"{temperatures[method]:g}", *cells])
            comparisons = compare_with_best(curves_shown, BUDGET)
            parts += [
                f"{task}, each method at {title} temperature T:",
                markdown(lines),
                paired_text(comparisons),
                paired_table(comparisons, labels_at(temperatures)),
            ]
    return "\n\n".join([*parts, BEST_TEXT])


def labels_at(temperatures: Mapping[str, float]) -> dict[str, str]:
    """The name of each method with its temperature, as tables and figures show it."""
    return {
        method: f"{get_method(method).label}, T = {temperature:g}"
        for method, temperature in temperatures.items()
    }


def draw(curves: Mapping[str, Curves], folder: Path) -> list[Path]:
    """Draw accuracy by rollouts and by FLOPs, each method at its own temperature.

    Args:
        curves: of each experiment, by its name.
        folder: for the figures.
    """
    paths = []
    for task, best_temperatures in CHOSEN.items():
        title = f"{task}: each method at the temperature T that validation chose"
        for unit in ("rollouts", "flops"):
            names = [f"{task}_{unit}.{suffix}" for suffix in ("png", "pdf")]
            save_accuracy_plots(
                own_curves(curves, task),
                unit,
                title,
                [folder / name for name in names],
                labels=labels_at(best_temperatures),
            )
            paths += [folder / name for name in names]
    return paths
