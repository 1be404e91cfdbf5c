"""Reading the whole prefix as one step is the best way to aggregate step scores.

Source: Puri et al. 2025, arXiv 2502.01618, figure 5: the particle filter with
Llama-3.2-1B-Instruct on 100 problems. Expected, in percent at N = 32: model 60, last
59, product 54, min 51; at N = 64 last is ahead, 62 to 57.
Small: last, min, product and mean of the embedded reward model's scores, which has no
aggregation by the model.
Cost: 4 x 500 problems x 255 rollouts; small: 4 minutes of one core.
Command: tsi reproduce aggregation [--small]
"""

from tsi.experiments.reproductions.published_models import (
    embedded_experiment,
    published_experiment,
)

METHODS = ("particle_filter", "smc")
FULL = [
    published_experiment(name, aggregation=name, methods=METHODS)
    for name in ("model", "last", "min", "product")
]
SMALL = [
    embedded_experiment(name, aggregation=name, methods=METHODS)
    for name in ("last", "min", "product", "mean")
]
