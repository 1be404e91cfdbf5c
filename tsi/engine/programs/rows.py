"""The stored state of each row without its caches, and of each problem.

A reward's state is a pytree of any structure. Its leaves are stored by their type:
caches that grow with a row (:class:`tsi.decoding.cache.Suffix`) in blocks, caches of
prompts (:class:`tsi.models.attention.Segment`) once per problem, and all other leaves,
which are small, with the row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tsi.decoding.cache import Suffix, squeeze
from tsi.engine.paging.pages import Dense, layers_of
from tsi.models.attention import Segment
from tsi.reasoning.cost import Cost, zero_cost
from tsi.reasoning.particles import Particles, ReasoningParams, without_caches
from tsi.rewards.reward import Prompts


class Stored(NamedTuple):
    """Rows of P problems, their working rows first.

    Attributes:
        rows: particles without caches and costs.
        reward: small leaves of the reward's state, and the positions of its caches.
        cost: cost of each working row; not moved when the row gets another prefix.
        shared: caches of the reward's prompts, one row per problem.
        prompts: of the problems.
    """

    rows: Particles
    reward: list[Array]
    cost: Cost
    shared: list[Segment]
    prompts: Prompts


def empty_stored(
    particles: Particles,
    reward: list[Array],
    shared: list[Segment],
    prompts: Prompts,
    *,
    rows: int,
    working: int,
    problems: int,
) -> Stored:
    """Zeros for rows and problems of these shapes.

    Args:
        particles: without caches.
        reward: small leaves.
        shared: caches of the reward's prompts.
        prompts: of problems.
        rows: number of rows.
        working: number of working rows among them.
        problems: number of problems.
    """

    def room(count: int) -> Callable[[Array], Array]:
        return lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype)

    def make_layer_zeros(leaf: Array) -> Array:
        return jnp.zeros((leaf.shape[0], problems, *leaf.shape[2:]), leaf.dtype)

    return Stored(
        jax.tree.map(room(rows), particles),
        [room(rows)(leaf) for leaf in reward],
        # A buffer must not be donated twice under several names.
        jax.tree.map(jnp.copy, zero_cost(working)),
        [
            segment._replace(
                keys=make_layer_zeros(segment.keys),
                values=make_layer_zeros(segment.values),
                positions=room(problems)(segment.positions),
                mask=room(problems)(segment.mask),
            )
            for segment in shared
        ],
        jax.tree.map(room(problems), prompts),
    )


class RewardCaches(NamedTuple):
    """The reward's growing caches of some rows.

    Attributes:
        dense: of each cache.
        lengths: of each cache, positions of each row.
    """

    dense: list[Dense]
    lengths: Any


class RewardChange(NamedTuple):
    """A cache after a step; the first ``kept`` positions are unchanged."""

    kept: list[Int[Array, " A"]]
    lengths: list[Int[Array, " A"]]


def is_cache(x: Any) -> bool:
    """Whether a leaf of a reward's state is a cache."""
    return isinstance(x, Suffix | Segment)


def parts_of(state: Any) -> tuple[list[Array], list[Segment], list[Suffix], Any]:
    """Split a reward's state: small leaves, prompt caches, growing caches, structure.

    The positions of growing caches are among the small leaves.
    """
    leaves, structure = jax.tree.flatten(state, is_leaf=is_cache)
    caches = [x for x in leaves if isinstance(x, Suffix)]
    shared = [x for x in leaves if isinstance(x, Segment)]
    rows = [x.segment.positions if isinstance(x, Suffix) else x for x in leaves]
    rows = [x for x in rows if not is_cache(x)]
    kinds = tuple(type(x) if is_cache(x) else None for x in leaves)
    return rows, shared, caches, (structure, kinds)


def state_of(
    rows: list[Array], shared: list[Segment], caches: RewardCaches, structure: Any
) -> Any:
    """The reward's state of A rows, put together from their parts; see `parts_of`."""
    tree, kinds = structure
    row_leaves, prompts = iter(rows), iter(shared)
    grown = iter(zip(caches.dense, caches.lengths, strict=True))

    def suffix() -> Suffix:
        dense, lengths = next(grown)
        size = dense.keys[0].shape[-1]
        mask = jnp.arange(size) < lengths[:, None]
        # Dense rows have a whole number of blocks.
        positions = next(row_leaves)[:, :size]
        positions = jnp.pad(positions, ((0, 0), (0, size - positions.shape[1])))
        keys, values = map(jnp.stack, dense)
        segment = Segment(keys, values, positions, mask)
        return Suffix(segment, jnp.max(lengths).astype(jnp.int32))

    leaves = [
        suffix() if kind is Suffix else next(prompts if kind else row_leaves)
        for kind in kinds
    ]
    return jax.tree.unflatten(tree, leaves)


def take(
    stored: Stored,
    rows: Int[Array, " A"],
    working: Int[Array, " A"],
    problems: Int[Array, " A"],
    caches: RewardCaches,
    structure: Any,
) -> Particles:
    """Take rows and their problems out of the store, without the policy's caches.

    Args:
        stored: all rows.
        rows: rows to take.
        working: the working rows to which costs are added.
        problems: the problem of each.
        caches: the reward's growing caches of these rows.
        structure: structure of the reward's state, from `parts_of`.
    """
    shared = [
        Segment(
            segment.keys[:, problems],
            segment.values[:, problems],
            segment.positions[problems],
            segment.mask[problems],
        )
        for segment in stored.shared
    ]
    leaves = [leaf[rows] for leaf in stored.reward]
    return jax.tree.map(lambda leaf: leaf[rows], stored.rows)._replace(
        reward_state=state_of(leaves, shared, caches, structure),
        cost=jax.tree.map(lambda leaf: leaf[working], stored.cost),
    )


def put(
    stored: Stored, rows: Int[Array, " A"], particles: Particles, caches: RewardCaches
) -> tuple[Stored, RewardCaches, RewardChange]:
    """Write working rows back after they have read a step.

    Args:
        stored: all rows.
        rows: working rows; indices out of range are dropped.
        particles: their new state.
        caches: the reward's, as they were before.

    Returns:
        The store; the reward's caches, without gaps; and what has changed in them.
    """
    _, _, grown, _ = parts_of(particles.reward_state)
    num_kept, lengths, dense, squeezed = [], [], [], []
    for suffix, before, count in zip(grown, *caches, strict=True):
        mask = suffix.segment.mask
        old = jnp.arange(before.keys[0].shape[-1]) < count[:, None]
        num_kept.append(jnp.sum(jnp.cumprod(mask & old, axis=1), axis=1))
        lengths.append(jnp.sum(mask, axis=1))
        whole = squeeze(suffix)
        dense.append(layers_of(whole.segment.keys, whole.segment.values))
        squeezed.append(whole)
    whole_caches = iter(squeezed)
    state = jax.tree.map(
        lambda x: next(whole_caches) if isinstance(x, Suffix) else x,
        particles.reward_state,
        is_leaf=is_cache,
    )
    leaves, _, _, _ = parts_of(state)

    def write(old: Array, new: Array) -> Array:
        # The number of positions is that of the blocks that were read.
        if new.ndim > 1 and new.shape[1] != old.shape[1]:
            width = min(new.shape[1], old.shape[1])
            return old.at[rows, :width].set(new[:, :width], mode="drop")
        return old.at[rows].set(new, mode="drop")

    stored = stored._replace(
        rows=jax.tree.map(write, stored.rows, without_caches(particles)),
        reward=[write(a, b) for a, b in zip(stored.reward, leaves, strict=True)],
        cost=jax.tree.map(write, stored.cost, particles.cost),
    )
    return stored, RewardCaches(dense, lengths), RewardChange(num_kept, lengths)


def of_rows(
    params: ReasoningParams, stored: Stored, problems: Int[Array, " A"]
) -> ReasoningParams:
    """The parameters of a batch of rows, with the prompt of each row's problem."""
    prompts = jax.tree.map(lambda leaf: leaf[problems], stored.prompts)
    return params._replace(prompts=prompts)
