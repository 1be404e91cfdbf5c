"""Sweeps of particle Gibbs are worth less than as many more particles.

Source: Puri et al. 2025, arXiv 2502.01618, figure 7: at equal rollouts more particles
are better than more iterations of particle Gibbs.
Each method uses N rollouts in all: 4 sweeps of N / 4 particles, or N particles once.
Cost: 500 problems x 5 methods; small: minutes on 2 cores,
not timed.
Command: tsi reproduce particle_gibbs [--small]
"""

from tsi.experiments.reproductions.published_models import embedded, published

METHODS = (
    "smc",
    "particle_filter",
    "particle_gibbs",
    "particle_gibbs_ancestor",
    "particle_gibbs_printed",
)
FULL = [published("llama-1b", methods=METHODS, budgets=(8, 16, 32, 64, 128))]
SMALL = [
    embedded(task, task, methods=METHODS, budgets=(8, 16, 32))
    for task in ("chain", "countdown")
]
