"""Where early scores are overconfident, an entropic particle filter collapses less.

Source: entropic particle filtering, with resampling temperature max(1, (N/ESS)(1 -
t/T)) while ESS is below half and in the first half of the steps.
Overconfidence is made by the product aggregation, which sharpens scores step by step.
Expected: a gain that grows with N; not published for these models.
Cost: 500 problems x 4 methods; small: 3 minutes on 2 cores, with 100
problems: a standard error is about 5 points, and of a paired difference about 3.
Command: tsi reproduce overconfident_reward [--small]
"""

from tsi.experiments.reproductions.published_models import (
    embedded_experiment,
    published_experiment,
)

METHODS = (
    "particle_filter",
    "entropic_particle_filter",
    "entropic_particle_filter_released",
    "annealed_resampling",
)
FULL = [
    published_experiment(name, aggregation=name, methods=METHODS)
    for name in ("last", "product")
]
SMALL = [
    embedded_experiment(
        name, aggregation=name, methods=METHODS, budgets=(4, 16), num_problems=100
    )
    for name in ("last", "product")
]
