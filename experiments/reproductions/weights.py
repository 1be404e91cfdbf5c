"""Odds, softmax of rewards and telescoping ratios are different targets.

Source: Puri et al. 2025, arXiv 2502.01618: the printed algorithm resamples by the
softmax of rewards, the released code by the softmax of log-odds, at every step, so that
early steps count again and again; with telescoping ratios (SMC here) the target is the
policy times the final odds. Expected: not published.
Cost: 500 problems x 4 methods; small: 2 minutes on 2 cores.
Command: tsi reproduce weights [--small]
"""

from tsi.experiments.reproductions.published_models import (
    EMBEDDED_TASKS,
    embedded_experiment,
    published_experiment,
)

METHODS = (
    "particle_filter",
    "particle_filter_released",
    "particle_filter_printed",
    "smc",
)
FULL = [published_experiment("llama-1b", methods=METHODS)]
SMALL = [embedded_experiment(task, task, methods=METHODS) for task in EMBEDDED_TASKS]
