"""The genealogy of a run as a tree, in which equal branches are one.

Particles that have the same parent and the same text of a step are one node. Particles
without final descendants are one node for each parent, and have no text, because a
result keeps only the texts of the final particles.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tsi.accuracy.degeneracy import lineages


class Node(NamedTuple):
    """Equal prefixes of one step.

    Args:
        step: index of the step, from 0.
        parent: index of the parent in the tree, None for the first step.
        slots: particles of this step.
        finals: final particles that descend from them; none for a dead branch.
        ends: those of `finals` whose last step this is.
        text: of the step; None for a dead branch.
        reward: mean reward after the step; NaN if not recorded.
        row: vertical position. Parents are level with their first child, and branches
            do not cross.
    """

    step: int
    parent: int | None
    slots: tuple[int, ...]
    finals: tuple[int, ...]
    ends: tuple[int, ...]
    text: str | None
    reward: float
    row: int


def merged_tree(
    ancestors: Int[np.ndarray, "T N"],
    step_texts: Sequence[Sequence[str]],
    rewards: Float[np.ndarray, "T N"] | None,
) -> list[Node]:
    """All nodes, each after its parent; branches with more descendants come first.

    Args:
        ancestors: parent of each particle at each step.
        step_texts: the steps of each final particle.
        rewards: after each step, or None.
    """
    lineage = lineages(ancestors)
    lengths = [len(steps) for steps in step_texts]
    nodes: list[Node] = []
    next_row = 0

    def grow(step: int, parent: int | None, slots: tuple[int, ...]) -> None:
        nonlocal next_row
        is_first_child = True
        for text, group in _groups(step, slots, lineage, step_texts):
            finals = (
                ()
                if text is None
                else _final_particles(lineage[step], group, lengths, step)
            )
            ends = tuple(n for n in finals if lengths[n] == step + 1)
            if parent is not None and is_first_child and not nodes[parent].ends:
                row = nodes[parent].row
            else:
                row, next_row = next_row, next_row + 1
            is_first_child = False
            reward = np.nan if rewards is None else rewards[step, list(group)].mean()
            nodes.append(
                Node(step, parent, group, finals, ends, text, float(reward), row)
            )
            place = len(nodes) - 1
            if set(finals) - set(ends) and step + 1 < len(ancestors):
                is_child = np.isin(ancestors[step + 1], group)
                grow(step + 1, place, tuple(np.flatnonzero(is_child).tolist()))

    if len(ancestors):
        grow(0, None, tuple(range(ancestors.shape[1])))
    return nodes


def _final_particles(
    slots: np.ndarray, group: tuple[int, ...], lengths: list[int], step: int
) -> tuple[int, ...]:
    """Final particles with a step here, in one of a group's slots."""
    indices = np.flatnonzero(np.isin(slots, group))
    return tuple(int(n) for n in indices if lengths[n] > step)


def _groups(
    step: int,
    slots: tuple[int, ...],
    lineage: np.ndarray,
    step_texts: Sequence[Sequence[str]],
) -> list[tuple[str | None, tuple[int, ...]]]:
    """Slots by the text of their step, None for those without final descendants."""
    groups: dict[str | None, list[int]] = {}
    survivors: dict[str | None, int] = {}
    for slot in slots:
        finals = np.flatnonzero(lineage[step] == slot)
        steps = step_texts[int(finals[0])] if finals.size else ()
        if finals.size and step >= len(steps):
            # A finished particle is kept without a new step.
            continue
        text = steps[step] if finals.size else None
        groups.setdefault(text, []).append(slot)
        survivors[text] = survivors.get(text, 0) + finals.size
    order = sorted(groups, key=lambda text: (text is None, -survivors[text]))
    return [(text, tuple(groups[text])) for text in order]
