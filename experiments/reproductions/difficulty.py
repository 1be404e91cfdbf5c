"""The best method depends on the difficulty of the problem.

Source: Snell et al. 2024, arXiv 2408.03314: search is best on problems of medium
difficulty, best-of-N on easy ones. Liu et al. 2025, arXiv 2502.06703: it also depends
on the policy and the reward model. Here difficulty is the task: short and long chains,
Countdown with all problems and with four numbers alone.
Cost: 500 problems x 6 methods; small: not timed.
Command: tsi reproduce difficulty [--small]
"""

from tsi.experiments.reproductions.published_models import embedded, published

METHODS = (
    "self_consistency",
    "best_of_n",
    "beam_search",
    "rebase",
    "particle_filter",
    "smc",
)
FULL = [published("llama-1b", methods=METHODS)]
SMALL = [
    embedded(task, task, methods=METHODS)
    for task in ("chain", "chain_long", "countdown", "countdown_four")
]
