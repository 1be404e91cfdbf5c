"""Numbers of rows that the host reads, and scores that the host writes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.engine.programs.rows import Stored
from tsi.reasoning.particles import Particles, ReasoningParams
from tsi.reasoning.target import ReasoningTarget
from tsi.weights import weight_dtype


class RowReplies(NamedTuple):
    """The numbers of rows for the sampler and for the host, ``[A]`` each."""

    log_potentials: Float[Array, " A"]
    log_corrections: Float[Array, " A"]
    log_probs: Float[Array, " A"]
    finished: Bool[Array, " A"]
    lengths: Int[Array, " A"]


class Solutions(NamedTuple):
    """The solutions of rows that the host scores, ``[A]`` each; see `Particles`.

    ``truncated`` marks those that were cut at a limit.
    """

    tokens: Int[Array, "A T"]
    truncated: Bool[Array, " A"]
    step_ends: Int[Array, "A M"]
    log_prob: Float[Array, " A"]


def replies_of(
    target: ReasoningTarget,
    particles: Particles,
    step: Any,
    params: ReasoningParams,
) -> RowReplies:
    """The replies of rows.

    Args:
        target: for the log potentials.
        particles: the rows.
        step: has log p and log p - log q of the step that they have taken; None if they
            have taken none.
        params: weights and temperatures.
    """
    zeros = jnp.zeros(particles.lengths.shape, weight_dtype())
    return RowReplies(
        target.log_potential(0, particles, params).astype(weight_dtype()),
        zeros if step is None else step.log_correction,
        zeros if step is None else step.log_prob,
        particles.finished,
        particles.lengths,
    )


def solutions_of(stored: Stored, rows: Int[Array, " A"]) -> Solutions:
    """The solutions of rows so far."""
    old = stored.rows
    leaves = old.tokens, old.truncated, old.step_ends, old.log_prob
    return Solutions(*(leaf[rows] for leaf in leaves))


def score(
    target: ReasoningTarget,
    stored: Stored,
    rows: Int[Array, " A"],
    depths: Int[Array, " A"],
    log_odds: Float[Array, " A"],
    spent: tuple[Int[Array, " A"], Float[Array, " A"]] | None,
    params: ReasoningParams,
) -> tuple[Stored, Float[Array, " A"]]:
    """Set the log-odds of steps that the host has scored.

    Args:
        target: for the log potentials.
        stored: all rows.
        rows: rows to write; indices out of range are dropped.
        depths: index of the step.
        log_odds: of the rows.
        spent: tokens that a model has read for the rows, and the positions that these
            tokens attended to; None if no model was used.
        params: weights and temperatures.

    Returns:
        The store, and the log potentials of the rows.
    """
    old = stored.rows
    history = old.history._replace(
        log_odds=old.history.log_odds.at[rows, depths].set(log_odds, mode="drop")
    )
    new = old._replace(
        log_odds=old.log_odds.at[rows].set(log_odds, mode="drop"), history=history
    )
    scored_rows = jax.tree.map(lambda leaf: leaf[rows], new)
    potentials = target.log_potential(0, scored_rows, params)
    if spent is not None:
        read, context = spent
        cost = stored.cost
        cost = cost._replace(
            reward_read=cost.reward_read.at[rows].add(read, mode="drop"),
            reward_context=cost.reward_context.at[rows].add(context, mode="drop"),
        )
        stored = stored._replace(cost=cost)
    return stored._replace(rows=new), potentials.astype(weight_dtype())
