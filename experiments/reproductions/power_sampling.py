"""Sampling from a power of the policy improves answers without any reward.

Source: Karan and Du 2025 (MCMC), and Power-SMC, arXiv 2602.10273, at alpha = 4 with a
proposal at temperature 1 / 4.
Expected: both above self-consistency at one sample, and SMC faster than MCMC.
Cost: 500 problems x 4 methods; small: 2 minutes on 2 cores.
Command: tsi reproduce power_sampling [--small]
"""

from tsi.experiments.reproductions.published_models import (
    EMBEDDED_TASKS,
    embedded_experiment,
    published_experiment,
)

METHODS = ("greedy", "self_consistency", "power_sampling", "power_smc")
FULL = [
    published_experiment(
        "qwen-math-7b",
        "Qwen/Qwen2.5-Math-7B",
        reward="none",
        aggregation="last",
        temperature=1.0,
        methods=METHODS,
        budgets=(1, 4, 16, 64),
    )
]
SMALL = [
    embedded_experiment(task, task, reward="none", methods=METHODS)
    for task in EMBEDDED_TASKS
]
