"""A tree of stored prefixes in arrays of fixed size, node by slot.

Slot 0 is the root, the empty prefix. A node's children are the slots whose `parent` it
is, so a tree of any shape needs no lists. What a visit found is added to every node
from there up to the root, in the order of the visits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.explorer import Reply
from tsi.samplers.parts.solutions import Solutions, best_solutions, read_potentials
from tsi.weights import weight_dtype


class SearchTree(NamedTuple):
    """Nodes by slot; of slots from `size` on nothing is meant.

    Attributes:
        size: slots in use.
        parent: slot of the parent, -1 for the root and for slots not in use, [M].
        log_potentials: as told; NaN and +inf as -inf, [M].
        finished: whole solutions, [M].
        visits: how often a visit went through or ended here, [M].
        total: sum of the values that those visits found, [M].
    """

    size: Int[Array, ""]
    parent: Int[Array, "M"]
    log_potentials: Float[Array, "M"]
    finished: Bool[Array, "M"]
    visits: Int[Array, "M"]
    total: Float[Array, "M"]

    @property
    def rewards(self) -> Float[Array, "M"]:
        """sigmoid(log potential): zero for what cannot be."""
        return jax.nn.sigmoid(self.log_potentials)

    @property
    def values(self) -> Float[Array, "M"]:
        """The mean of what visits found; before the first visit the reward."""
        mean = self.total / jnp.maximum(self.visits, 1)
        return jnp.where(self.visits > 0, mean, self.rewards)

    @property
    def num_finished(self) -> Int[Array, ""]:
        """How many whole solutions there are."""
        return jnp.sum(self.finished)

    @property
    def exhausted(self) -> Bool[Array, ""]:
        """Whether every node has children or is a whole solution."""
        slots = jnp.arange(self.parent.shape[0])
        above = jnp.where(self.parent >= 0, self.parent, slots.size)
        childless = jnp.ones(slots.size, bool).at[above].set(False, mode="drop")
        return ~jnp.any(childless & ~self.finished & (slots < self.size))


def new_tree(stored: int) -> SearchTree:
    """A root and room for `stored` - 1 more."""
    zeros = jnp.zeros(stored, weight_dtype())
    return SearchTree(
        jnp.ones((), jnp.int32),
        jnp.full(stored, -1, jnp.int32),
        zeros,
        jnp.zeros(stored, bool),
        jnp.zeros(stored, jnp.int32),
        zeros,
    )


def children(tree: SearchTree, node: Int[Array, ""]) -> Bool[Array, "M"]:
    """Which slots are the node's children."""
    return tree.parent == node


def preferable(tree: SearchTree, candidates: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """The candidates of reward above zero, or all of them if there is none."""
    alive = candidates & (tree.log_potentials > -jnp.inf)
    return jnp.where(jnp.any(alive), alive, candidates)


def grow(
    tree: SearchTree,
    parents: Int[Array, "W"],
    slots: Int[Array, "W"],
    took: Bool[Array, "W"],
    reply: Reply,
) -> SearchTree:
    """The tree with the children of those rows that took a step."""
    where = jnp.where(took, slots, tree.parent.shape[0])
    return tree._replace(
        size=tree.size + jnp.sum(took, dtype=jnp.int32),
        parent=tree.parent.at[where].set(parents, mode="drop"),
        log_potentials=tree.log_potentials.at[where].set(
            read_potentials(reply), mode="drop"
        ),
        finished=tree.finished.at[where].set(reply.finished, mode="drop"),
    )


def backed_up(
    tree: SearchTree,
    node: Int[Array, ""],
    value: Float[Array, ""],
    active: Bool[Array, ""],
) -> SearchTree:
    """One visit more, from the node up to the root, that found this value."""

    def add(carry: tuple) -> tuple:
        here, visits, total = carry
        return tree.parent[here], visits.at[here].add(1), total.at[here].add(value)

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
