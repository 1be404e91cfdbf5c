"""Path degeneracy: the number of particles of each step with descendants at the end.

Every resampling removes some particles, so the final particles share their early steps.
If only one ancestor is left at a step, the run has a single sample of all steps up to
this one.

Source: Jacob, Murray and Rubenthaler 2015, arXiv 1307.3180.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def lineages(ancestors: Int[np.ndarray, "T N"]) -> Int[np.ndarray, "T N"]:
    """Slot of each final particle's ancestor in each step.

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
    """Number of particles of each step with descendants at the end; the last is N.

    The first number counts the eves, the ancestors in the first step.
    """
    return np.array([np.unique(row).size for row in lineages(ancestors)], np.int32)


def common_past(step_texts: Sequence[Sequence[str]]) -> Int[np.ndarray, "T K"]:
    """A genealogy of stored solutions, from their common first steps.

    The ancestor of solution k at step t is the first solution with the same first t
    steps, so that branches separate where texts differ.

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
