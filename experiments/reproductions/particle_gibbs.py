"""Sweeps of particle Gibbs are worth less than as many more particles.

Source: Puri et al. 2025, arXiv 2502.01618, figure 7: Llama-3.2-1B-Instruct on 100
problems. Expected, in percent at N = 32 rollouts: particle filter 60; particle Gibbs of
16, 8 and 4 particles 56, 52 and 48.
Each method uses N rollouts in all: 4 sweeps of N / 4 particles, or N particles once.
Cost: 500 problems x 5 methods; small: 10 minutes on 2 cores, only on chain.
Command: tsi reproduce particle_gibbs [--small]
"""

from tsi.experiments.reproductions.published_models import (
    embedded_experiment,
    published_experiment,
)

METHODS = (
    "smc",
    "particle_filter",
    "particle_gibbs",
    "particle_gibbs_ancestor",
    "particle_gibbs_printed",
)
FULL = [published_experiment("llama-1b", methods=METHODS, budgets=(8, 16, 32, 64, 128))]
SMALL = [embedded_experiment("chain", "chain", methods=METHODS, budgets=(8, 16, 32))]
