"""Four small tables on which samplers are checked, each with a different difficulty."""

from collections.abc import Callable

import numpy as np

from tsi.targets.tabular import TabularTarget


def smooth() -> TabularTarget:
    """Three symbols, four steps and mild scores: easy for every sampler."""
    return TabularTarget(
        initial=[0.5, 0.3, 0.2],
        transition=[[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]],
        log_potentials=[
            [0.2, -0.3, 0.1],
            [-0.4, 0.3, 0.0],
            [0.1, 0.2, -0.5],
            [0.6, -0.2, -0.9],
        ],
    )


def peaked() -> TabularTarget:
    """Scores that reverse from step to step; the proposal differs from the policy."""
    return TabularTarget(
        initial=[0.4, 0.4, 0.2],
        transition=[[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.3, 0.6]],
        log_potentials=[
            [1.5, -1.0, 0.0],
            [-1.0, 1.2, 0.3],
            [0.8, -1.2, 1.0],
            [-1.5, 0.5, 1.8],
        ],
        proposal_initial=[0.3, 0.3, 0.4],
        proposal_transition=[[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.3, 0.4]],
    )


def impossible_prefixes() -> TabularTarget:
    """Some steps forbid symbols, and the policy forbids transitions."""
    return TabularTarget(
        initial=[0.6, 0.4, 0.0],
        transition=[[0.4, 0.3, 0.3], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]],
        log_potentials=[
            [0.3, -0.2, 0.0],
            [-np.inf, 0.4, -0.1],
            [0.5, -np.inf, 0.2],
            [0.7, 0.1, -np.inf],
        ],
    )


def unequal_lengths() -> TabularTarget:
    """An end symbol, so that paths have one to four steps, and a proposal."""
    return TabularTarget(
        initial=[0.5, 0.35, 0.15],
        transition=[[0.4, 0.3, 0.3], [0.3, 0.35, 0.35], [1.0, 0.0, 0.0]],
        log_potentials=[
            [0.2, -0.4, 0.3],
            [0.4, 0.1, -0.6],
            [-0.3, 0.5, 0.6],
            [-0.7, 0.2, 0.8],
        ],
        end=2,
        proposal_initial=[0.4, 0.4, 0.2],
        proposal_transition=[[0.45, 0.35, 0.2], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]],
    )


EXAMPLES: dict[str, Callable[[], TabularTarget]] = {
    "smooth": smooth,
    "peaked": peaked,
    "impossible prefixes": impossible_prefixes,
    "unequal lengths": unequal_lengths,
}
"""The examples on which `tsi.bench.conformance` checks samplers, by name."""
