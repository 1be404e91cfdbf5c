"""The result of a search: which stored prefixes, and with which weights.

Prefixes have four classes, the best first: finished with a reward above zero, finished,
unfinished with a reward above zero, unfinished. The result is the best class that is
not empty, with equal weights. A search without a finished solution returns its
unfinished prefixes.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.explorer import Reply
from tsi.weights import is_invalid, sanitise, weight_dtype


class Solutions(NamedTuple):
    """The result of a search, with the fields of an explorer's state.

    Attributes:
        members: stored prefixes, [K].
        log_weights: with mean weight one, -inf for padding, [K].
        log_potentials, finished: of the members, [K].
    """

    members: Int[Array, "K"]
    log_weights: Float[Array, "K"]
    log_potentials: Float[Array, "K"]
    finished: Bool[Array, "K"]


def read_potentials(reply: Reply) -> Float[Array, "W"]:
    """Log potentials for ranking; NaN and +inf as -inf."""
    return sanitise(reply.log_potentials.astype(weight_dtype()))


def count_invalid(reply: Reply, step_mask: Bool[Array, "W"]) -> Int[Array, ""]:
    """Count the rows that took a step and got a log potential of NaN or +inf."""
    return jnp.sum(is_invalid(reply.log_potentials) & step_mask, dtype=jnp.int32)


def rank_classes(
    log_potentials: Float[Array, "M"], finished: Bool[Array, "M"]
) -> Int[Array, "M"]:
    """The class of each prefix, from 1 to 4; higher is better."""
    alive = log_potentials > -jnp.inf
    return 1 + alive.astype(jnp.int32) + 2 * finished.astype(jnp.int32)


def sort_best_first(
    log_potentials: Float[Array, "M"], classes: Int[Array, "M"]
) -> Int[Array, "M"]:
    """Sort by class, then by log potential, best first; the lower index wins a tie."""
    return jnp.lexsort((-log_potentials, -classes)).astype(jnp.int32)


def equal_weights(is_chosen: Bool[Array, "K"]) -> Float[Array, "K"]:
    """Log weights with mean weight one, equal where chosen and -inf elsewhere.

    If nothing is chosen, all are equal.
    """
    is_chosen = is_chosen | ~jnp.any(is_chosen)
    share = jnp.log(is_chosen.shape[0] / jnp.sum(is_chosen))
    return jnp.where(is_chosen, share, -jnp.inf).astype(weight_dtype())


def best_solutions(
    log_potentials: Float[Array, "M"],
    finished: Bool[Array, "M"],
    exists: Bool[Array, "M"],
    size: int,
) -> Solutions:
    """The K best prefixes of the best class, padded with copies of the first.

    Args:
        log_potentials: of each stored prefix, none NaN or +inf.
        finished: which are complete solutions.
        exists: which may be in the result.
        size: K.
    """
    classes = jnp.where(exists, rank_classes(log_potentials, finished), 0)
    order = sort_best_first(log_potentials, classes)
    count = jnp.sum(classes == jnp.max(classes))
    places = jnp.arange(size)
    # A slice instead of a gather, which crashes XLA on CPUs (jax 0.10.2, K = 2).
    members = jnp.where(places < count, order[:size], order[0])
    return Solutions(
        members,
        equal_weights(places < count),
        log_potentials[members],
        finished[members],
    )


def empty_solutions(size: int) -> Solutions:
    """K empty prefixes with equal weights, before the first step."""
    zeros = jnp.zeros(size, weight_dtype())
    return Solutions(jnp.zeros(size, jnp.int32), zeros, zeros, jnp.zeros(size, bool))
