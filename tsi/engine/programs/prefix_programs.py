"""Rows get the prefixes of other rows: forked, cut back, or stored."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from tsi.engine.paging.pages import Dense
from tsi.engine.programs.row_replies import RowReplies, replies_of
from tsi.engine.programs.rows import RewardCaches, Stored, of_rows, put, take
from tsi.reasoning.particles import ReasoningParams
from tsi.reasoning.store import ReasoningStore


def arrange(
    store: ReasoningStore,
    structure: Any,
    stored: Stored,
    rows: Int[Array, " A"],
    parents: Int[Array, " A"],
    depths: Int[Array, " A"] | None,
    lengths: list[Int[Array, " A"]],
    problems: Int[Array, " A"],
    params: ReasoningParams,
) -> tuple[Stored, RowReplies, list[Int[Array, " A"]]]:
    """Give working rows their prefixes, cut back.

    Args:
        store: policy and reward.
        structure: of the reward's state.
        stored: of P problems.
        rows: all working rows; an index out of range leaves the row unchanged.
        parents: the row whose prefix each gets.
        depths: number of the prefix's steps that are kept; None for all.
        lengths: lengths of the parents' reward caches.
        problems: problem of each row.
        params: weights and temperatures.

    Returns:
        The store, the replies of the rows, and the lengths of their reward caches.
    """
    sizes = [positions.shape[1] for positions in cache_positions(stored, structure)]
    count = rows.shape[0]
    # Cutting a cache reads only its masks.
    nothing = [
        Dense((jnp.zeros((count, 0, 0, n)),), (jnp.zeros((count, 0, n, 0)),))
        for n in sizes
    ]
    caches = RewardCaches(nothing, lengths)
    working = jnp.arange(count)
    prefixes = take(stored, parents, working, problems, caches, structure)
    row_params = of_rows(params, stored, problems)
    if depths is not None:
        prefixes = store.shorten(prefixes, depths, row_params)
        cut = store.target.reward.cut(prefixes.reward_state, prefixes.lengths)
        prefixes = prefixes._replace(reward_state=cut)
    stored, _, change = put(stored, rows, prefixes, caches)
    return stored, replies_of(store.target, prefixes, None, row_params), change.lengths


def cache_positions(stored: Stored, structure: Any) -> list[Array]:
    """The positions of the reward's growing caches, which are leaves of its state."""
    _, kinds = structure
    # The small leaves in order, including those of caches.
    names = [kind for kind in kinds if kind is None or kind.__name__ == "Suffix"]
    return [x for x, kind in zip(stored.reward, names, strict=True) if kind]


def keep(stored: Stored, rows: Int[Array, " A"], sources: Int[Array, " A"]) -> Stored:
    """Overwrite rows with copies of others; indices out of range are dropped."""

    def write(leaf: Array) -> Array:
        return leaf.at[rows].set(leaf[sources], mode="drop")

    return stored._replace(
        rows=jax.tree.map(write, stored.rows),
        reward=[write(leaf) for leaf in stored.reward],
    )
