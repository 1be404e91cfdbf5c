"""The best temperature differs between methods, so a common one misleads.

Source: Bag of Tricks for inference-time computation, Liu et al. 2025, arXiv 2502.07191.
The temperatures are compared on validation problems, so that test problems stay
untouched; run `headline` with the better one of each method.
Expected: not published for these models.
Cost: 3 x 500 problems; small: 96,000 rollouts, 21 minutes on 2 cores by the seconds of
its rows.
Command: tsi reproduce tuned_temperature [--small]
"""

from collections.abc import Mapping

from tsi.experiments.plans.methods import get_method
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.reports.curves import Curves
from tsi.experiments.reports.report import markdown, percent
from tsi.experiments.reproductions.published_models import (
    embedded_experiment,
    published_experiment,
)

METHODS = ("weighted_best_of_n", "dvts", "rebase", "particle_filter", "smc")
FULL = [
    published_experiment(f"t{t}", temperature=t, methods=METHODS, budgets=(4, 16, 64))
    for t in (0.4, 0.7, 1.0)
]
TASKS = ("chain_long", "countdown_four")
TEMPERATURES = (0.4, 0.7, 1.0)
BUDGET = 16
SMALL = [
    embedded_experiment(
        f"{task}-t{t}",
        task,
        problems=ProblemOptions(task, split="validation"),
        temperature=t,
        methods=METHODS,
        budgets=(BUDGET,),
    )
    for task in TASKS
    for t in TEMPERATURES
]


def summarise(curves: Mapping[str, Curves]) -> str:
    """Accuracy by temperature, and the best one of each method.

    Of equal accuracies the higher temperature counts as better: its samples differ
    more, so that it has more to gain from a larger budget.
    """
    head = [f"temperature {t:g}" for t in TEMPERATURES]
    lines = [["task", "method", *head, "best"]]
    for task in TASKS:
        for method in METHODS:
            points = {t: curves[f"{task}-t{t}"][method][BUDGET] for t in TEMPERATURES}
            best = max(points, key=lambda t: (points[t].accuracy, t))
            cells = [percent(point) for point in points.values()]
            lines.append([task, get_method(method).label, *cells, f"{best:g}"])
    return f"Validation problems, N = {BUDGET}:\n\n{markdown(lines)}"
