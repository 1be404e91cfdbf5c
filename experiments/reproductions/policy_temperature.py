"""The particle filter needs a policy that is neither too cold nor too hot.

Source: Puri et al. 2025, arXiv 2502.01618, figure 6: Llama-3.2-1B-Instruct on 100
problems. Expected, in percent at N = 32: 54, 59, 59, 53 and 56 at temperatures 0.4 to
1.2. The paper chooses 0.8; its curves hardly differ, and cross.
Cost: 5 x 500 problems x 255 rollouts; small: 5 minutes on 2 cores.
Command: tsi reproduce policy_temperature [--small]
"""

from tsi.experiments.reproductions.published_models import (
    embedded_experiment,
    published_experiment,
)

TEMPERATURES = (0.4, 0.6, 0.8, 1.0, 1.2)
METHODS = ("particle_filter", "self_consistency")
FULL = [
    published_experiment(f"t{t}", temperature=t, methods=METHODS) for t in TEMPERATURES
]
SMALL = [
    embedded_experiment(f"t{t}", temperature=t, methods=METHODS, budgets=(4, 16))
    for t in TEMPERATURES
]
