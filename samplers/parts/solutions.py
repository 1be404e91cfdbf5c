"""Which stored prefixes a search hands over, and with what weights.

Prefixes fall into four classes, better ones first: finished with a reward above zero,
finished, unfinished with a reward above zero, unfinished. The best class that has any
is the result, at equal weights; a search that never finished shows how far it came.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.explorer import Reply
from tsi.weights import is_invalid, sanitise, weight_dtype


class Solutions(NamedTuple):
    """The result of a search, as an explorer's state shows it.

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
    """Log potentials to rank by; NaN and +inf, which are no weights, are -inf."""
    return sanitise(reply.log_potentials.astype(weight_dtype()))


def not_numbers(reply: Reply, took: Bool[Array, "W"]) -> Int[Array, ""]:
    """How many rows that took a step were told a log potential that is no weight."""
    return jnp.sum(is_invalid(reply.log_potentials) & took, dtype=jnp.int32)


def rank_classes(
    log_potentials: Float[Array, "M"], finished: Bool[Array, "M"]
) -> Int[Array, "M"]:
    """The class of each prefix, the higher the better, from 1 to 4."""
    alive = log_potentials > -jnp.inf
    return 1 + alive.astype(jnp.int32) + 2 * finished.astype(jnp.int32)


def best_first(
    log_potentials: Float[Array, "M"], classes: Int[Array, "M"]
) -> Int[Array, "M"]:
    """Prefixes by class, then by log potential; ties to the lower index."""
    return jnp.lexsort((-log_potentials, -classes)).astype(jnp.int32)


def equal_weights(chosen: Bool[Array, "K"]) -> Float[Array, "K"]:
    """Log weights that are equal where chosen and -inf elsewhere, of mean one.

    If nothing is chosen, all are equal.
    """
    chosen = chosen | ~jnp.any(chosen)
    share = jnp.log(chosen.shape[0] / jnp.sum(chosen))
    return jnp.where(chosen, share, -jnp.inf).astype(weight_dtype())


def best_solutions(
    log_potentials: Float[Array, "M"],
    finished: Bool[Array, "M"],
    exists: Bool[Array, "M"],
    size: int,
) -> Solutions:
    """The K best prefixes of the best class, padded by repeating the first of them.

    Args:
        log_potentials: of each stored prefix, none NaN or +inf.
        finished: which are whole solutions.
        exists: which may be handed over.
        size: K.
    """
    classes = jnp.where(exists, rank_classes(log_potentials, finished), 0)
    order = best_first(log_potentials, classes)
    count = jnp.sum(classes == jnp.max(classes))
    places = jnp.arange(size)
    members = order[jnp.where(places < count, places, 0)]
    return Solutions(
        members,
        equal_weights(places < count),
        log_potentials[members],
        finished[members],
    )


def no_solutions(size: int) -> Solutions:
    """K empty prefixes at equal weights: before the first step."""
    zeros = jnp.zeros(size, weight_dtype())
    return Solutions(jnp.zeros(size, jnp.int32), zeros, zeros, jnp.zeros(size, bool))
