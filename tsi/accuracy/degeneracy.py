"""How many particles of each step have descendants at the end: path degeneracy.

Every resampling forgets some particles, so the final ones agree on their early steps.
Where one ancestor is left, all that the run says of steps before it is one sample.

Source: Jacob, Murray and Rubenthaler 2015, arXiv 1307.3180.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def lineages(ancestors: Int[np.ndarray, "T N"]) -> Int[np.ndarray, "T N"]:
    """Slot of each final particle's forebear in each step.

    Args:
        ancestors: parent of each particle at each step.
    """
    num_steps, num_particles = ancestors.shape
    slots = np.empty_like(ancestors)
    current = np.arange(num_particles)
    for t in range(num_steps - 1, -1, -1):
        slots[t] = current
        current = ancestors[t][current]
    return slots


def unique_ancestors(ancestors: Int[np.ndarray, "T N"]) -> Int[np.ndarray, "T"]:
    """Distinct particles of each step with descendants at the end; the last is N.

    The first number is that of the eves, for nothing is resampled before step 0.
    """
    return np.array([np.unique(row).size for row in lineages(ancestors)], np.int32)


def common_past(step_texts: Sequence[Sequence[str]]) -> Int[np.ndarray, "T K"]:
    """A genealogy of solutions that come out of a store: what they share is their past.

    The ancestor of solution k at step t is the first solution with the same first t
    steps, so that branches part where texts do.

    Args:
        step_texts: the steps of each of K solutions.
    """
    size = len(step_texts)
    ancestors = np.tile(np.arange(size, dtype=np.int32), (max(map(len, step_texts)), 1))
    for t in range(1, len(ancestors)):
        first: dict[tuple[str, ...], int] = {}
        for k, steps in enumerate(step_texts):
            ancestors[t, k] = first.setdefault(tuple(steps[:t]), k)
    return ancestors
