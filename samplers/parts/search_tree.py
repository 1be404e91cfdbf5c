"""A tree of stored prefixes in arrays of fixed size, node by slot.

Slot 0 is the root, the empty prefix. The children of a node are the slots whose
`parent` is that node, so a tree of any shape needs no lists. The value of a visit is
added to every node on the path to the root, in the order of the visits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.explorer import Reply
from tsi.samplers.parts.solutions import Solutions, best_solutions, read_potentials
from tsi.weights import weight_dtype


class SearchTree(NamedTuple):
    """Nodes by slot; slots from `size` on are unused.

    Attributes:
        size: number of slots in use.
        parent: slot of the parent, -1 for the root and for unused slots, [M].
        log_potentials: NaN and +inf as -inf, [M].
        finished: which nodes are complete solutions, [M].
        visits: number of visits that passed through or ended at the node, [M].
        total: sum of the values of those visits, [M].
    """

    size: Int[Array, ""]
    parent: Int[Array, "M"]
    log_potentials: Float[Array, "M"]
    finished: Bool[Array, "M"]
    visits: Int[Array, "M"]
    total: Float[Array, "M"]

    @property
    def rewards(self) -> Float[Array, "M"]:
        """sigmoid(log potential): zero for an impossible prefix."""
        return jax.nn.sigmoid(self.log_potentials)

    @property
    def values(self) -> Float[Array, "M"]:
        """The mean value of the visits; before the first visit, the reward."""
        mean = self.total / jnp.maximum(self.visits, 1)
        return jnp.where(self.visits > 0, mean, self.rewards)

    @property
    def num_finished(self) -> Int[Array, ""]:
        """Number of complete solutions."""
        return jnp.sum(self.finished)

    @property
    def is_exhausted(self) -> Bool[Array, ""]:
        """Whether every node has children or is a complete solution."""
        slots = jnp.arange(self.parent.shape[0])
        parents = jnp.where(self.parent >= 0, self.parent, slots.size)
        childless = jnp.ones(slots.size, bool).at[parents].set(False, mode="drop")
        return ~jnp.any(childless & ~self.finished & (slots < self.size))


def new_tree(num_stored: int) -> SearchTree:
    """A tree with only its root, with space for `num_stored` - 1 further nodes."""
    zeros = jnp.zeros(num_stored, weight_dtype())
    return SearchTree(
        jnp.ones((), jnp.int32),
        jnp.full(num_stored, -1, jnp.int32),
        zeros,
        jnp.zeros(num_stored, bool),
        jnp.zeros(num_stored, jnp.int32),
        zeros,
    )


def children(tree: SearchTree, node: Int[Array, ""]) -> Bool[Array, "M"]:
    """Which slots are children of the node."""
    return tree.parent == node


def prefer_alive(tree: SearchTree, candidates: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """The candidates of reward above zero, or all candidates if there are none."""
    alive = candidates & (tree.log_potentials > -jnp.inf)
    return jnp.where(jnp.any(alive), alive, candidates)


def grow(
    tree: SearchTree,
    parents: Int[Array, "W"],
    slots: Int[Array, "W"],
    step_mask: Bool[Array, "W"],
    reply: Reply,
) -> SearchTree:
    """Add the children of the rows that took a step."""
    targets = jnp.where(step_mask, slots, tree.parent.shape[0])
    return tree._replace(
        size=tree.size + jnp.sum(step_mask, dtype=jnp.int32),
        parent=tree.parent.at[targets].set(parents, mode="drop"),
        log_potentials=tree.log_potentials.at[targets].set(
            read_potentials(reply), mode="drop"
        ),
        finished=tree.finished.at[targets].set(reply.finished, mode="drop"),
    )


def back_up(
    tree: SearchTree,
    node: Int[Array, ""],
    value: Float[Array, ""],
    active: Bool[Array, ""],
) -> SearchTree:
    """Add a visit with this value to the node and all its ancestors."""

    def add(carry: tuple) -> tuple:
        current, visits, total = carry
        return (
            tree.parent[current],
            visits.at[current].add(1),
            total.at[current].add(value),
        )

    start = jnp.where(active, node, -1)
    _, visits, total = jax.lax.while_loop(
        lambda carry: carry[0] >= 0, add, (start, tree.visits, tree.total)
    )
    return tree._replace(visits=visits, total=total)


def solutions(tree: SearchTree, size: int) -> Solutions:
    """The best finished nodes, or the best of all if none has finished."""
    slots = jnp.arange(tree.parent.shape[0])
    exists = (slots > 0) & (slots < tree.size)
    return best_solutions(tree.log_potentials, tree.finished, exists, size)
