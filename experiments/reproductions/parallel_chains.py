"""Parallel chains with a temperature ladder improve on one chain of the same cost.

Source: Puri et al. 2025, arXiv 2502.01618, figure 8, whose runs had independent chains
without swaps. Expected, in percent at N = 128 rollouts: one filter 46, 4 chains 46, 16
chains 48. Here: parallel tempering with exact swaps, as printed, islands with
exchange, particle Gibbs, PIMH, and SMC with all rollouts at once.
Cost: 500 problems x 6 methods; small: 3 minutes on 2 cores, on 100
problems of Countdown: a standard error is about 5 points.
Command: tsi reproduce parallel_chains [--small]
"""

from tsi.experiments.reproductions.published_models import (
    embedded_experiment,
    published_experiment,
)

METHODS = (
    "smc",
    "island_exchange",
    "particle_gibbs",
    "pimh",
    "parallel_tempering",
    "parallel_tempering_printed",
)
FULL = [published_experiment("llama-1b", methods=METHODS, budgets=(8, 16, 32, 64, 128))]
SMALL = [
    embedded_experiment(
        "countdown", methods=METHODS, budgets=(8, 16), num_problems=100
    ),
]
