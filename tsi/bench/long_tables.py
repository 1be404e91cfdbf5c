"""Three tables of ten steps, for errors at late steps or at another scale.

Each is hard where the four small tables of `tsi.targets.examples` are easy:

- long: scores change sign from step to step, so that a filter resamples at every step,
  and weights that are wrong from some step on affect later steps;
- wide: log potentials between -60 and +60. The part that all prefixes of a step share
  spans the whole range. A sink state, which is entered with probability 0.1 at each
  step and never left, has log potentials that are 60 lower. The dominating paths, which
  avoid the sink, have 0.39 of the policy's mass. (With less, a mean over runs would
  miss paths that matter but are rarely drawn.)
- long, unequal lengths: paths end after one to ten steps, with scores above and below
  those of the paths that continue.

Scores along the path must not outweigh those at the end by much. If weights were
distributed like the exponential of a normal variable with standard deviation 3, the
mean over a feasible number of runs would not be nearly normal.
"""

from collections.abc import Callable

import numpy as np

from tsi.targets.tabular import TabularTarget

NUM_STEPS = 10


def long_table() -> TabularTarget:
    """Symbols that mostly stay, and scores that change sign from step to step."""
    signs = (-1.0) ** np.arange(NUM_STEPS)[:, None]
    scores = signs * np.array([0.9, -0.3, -1.0])
    scores += 0.15 * np.cos(np.arange(3 * NUM_STEPS).reshape(NUM_STEPS, 3))
    return TabularTarget(
        initial=[0.4, 0.3, 0.3],
        transition=[[0.8, 0.2, 0.0], [0.0, 0.75, 0.25], [0.3, 0.0, 0.7]],
        log_potentials=scores,
    )


def wide_table() -> TabularTarget:
    """Log potentials between -60 and 60, and a sink 60 below the others."""
    common = np.array([41.0, -60.0, 60.0, 13.0, -47.0, 60.0, -60.0, 2.0, -29.0, 55.0])
    differences = np.where(np.arange(NUM_STEPS)[:, None] % 2, [-0.4, 0.4], [0.5, -0.6])
    scores = np.clip(common, -59.0, 59.0)[:, None] + differences
    sink = np.maximum(scores.min(1, keepdims=True) - 60.0, -60.0)
    return TabularTarget(
        initial=[0.5, 0.4, 0.1],
        transition=[[0.6, 0.3, 0.1], [0.25, 0.65, 0.1], [0.0, 0.0, 1.0]],
        log_potentials=np.concatenate([scores, sink], axis=1),
    )


def long_unequal_lengths() -> TabularTarget:
    """An end symbol, a proposal, and ends that score above or below other symbols."""
    steps = np.arange(NUM_STEPS)
    return TabularTarget(
        initial=[0.55, 0.35, 0.1],
        transition=[[0.55, 0.3, 0.15], [0.3, 0.5, 0.2], [1.0, 0.0, 0.0]],
        log_potentials=np.stack(
            [0.3 * np.cos(steps), -0.3 * np.sin(steps), 0.9 * np.cos(1.0 + steps)], -1
        ),
        end=2,
        proposal_initial=[0.45, 0.4, 0.15],
        proposal_transition=[[0.5, 0.3, 0.2], [0.35, 0.45, 0.2], [1.0, 0.0, 0.0]],
    )


LONG_EXAMPLES: dict[str, Callable[[], TabularTarget]] = {
    "long": long_table,
    "wide": wide_table,
    "long, unequal lengths": long_unequal_lengths,
}
"""The long tables by name; all have the same shape and share a compiled program."""
