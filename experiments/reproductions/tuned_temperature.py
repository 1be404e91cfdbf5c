"""Each method has a temperature of its own, and comparing at a common one misleads.

Source: Bag of Tricks for inference-time computation, Liu et al. 2025, arXiv 2502.07191.
The temperatures are compared on validation problems, so that test problems stay
untouched; run `headline` with the better one of each method.
Expected: not published for these models.
Cost: 3 x 500 problems; small: 8 minutes on 2 cores.
Command: tsi reproduce tuned_temperature [--small]
"""

from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.reproductions.published_models import embedded, published

METHODS = ("weighted_best_of_n", "dvts", "rebase", "particle_filter", "smc")
FULL = [
    published(f"t{t}", temperature=t, methods=METHODS, budgets=(4, 16, 64))
    for t in (0.4, 0.7, 1.0)
]
SMALL = [
    embedded(
        f"{task}-t{t}",
        task,
        problems=ProblemOptions(task, split="validation"),
        temperature=t,
        methods=METHODS,
        budgets=(16,),
    )
    for task in ("chain_long", "countdown_four")
    for t in (0.4, 0.7, 1.0)
]
