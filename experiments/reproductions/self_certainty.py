"""A policy's own confidence can take the place of a reward model.

Source: Kang et al. 2025, arXiv 2502.18581 (self-certainty); Fu et al. 2025, arXiv
2508.15260 (confidence of the last tokens). No reward model is read.
Expected: between self-consistency and best-of-N with a reward model.
Cost: 4 x 500 problems; small: 2 minutes on 2 cores.
Command: tsi reproduce self_certainty [--small]
"""

from tsi.experiments.reproductions.published_models import (
    embedded_experiment,
    published_experiment,
)

METHODS = ("self_consistency", "best_of_n", "weighted_best_of_n", "smc")
REWARDS = ("mean-log-prob", "self-certainty", "tail-entropy", "token-confidence")
FULL = [
    published_experiment(name, reward=name, aggregation="last", methods=METHODS)
    for name in REWARDS
]
SMALL = [
    *[embedded_experiment(name, reward=name, methods=METHODS) for name in REWARDS],
    embedded_experiment("reward-model", methods=METHODS),
]
