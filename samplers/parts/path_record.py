"""What an explorer remembers of a path: the numbers of each of its steps.

From them follow the path's log density under p^power exp(path_log_weight), its
proposal's density, and both for any prefix, so that a move pays for new steps only.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.explorer import Reply
from tsi.weights import centre, is_invalid, sanitise, weight_dtype


class PathRecord(NamedTuple):
    """Numbers of paths, each with room for T steps.

    Attributes:
        length: steps taken.
        log_potentials: told after each step; NaN and +inf as -inf.
        log_corrections: log p - log q of each step, what is no weight as -inf.
        log_probs: log p of each step.
    """

    length: Int[Array, "*batch"]
    log_potentials: Float[Array, "*batch T"]
    log_corrections: Float[Array, "*batch T"]
    log_probs: Float[Array, "*batch T"]

    @property
    def live(self) -> Bool[Array, "*batch T"]:
        """Which steps have been taken."""
        steps = jnp.arange(self.log_potentials.shape[-1])
        return steps < self.length[..., None]


class ChainSample(NamedTuple):
    """Numbers of a chain's present path, to be traced and summarised.

    Attributes:
        log_density: of the target, not normalised.
        log_potential: the last.
        log_prob: log p of the path.
        length: steps.
    """

    log_density: Float[Array, "*batch"]
    log_potential: Float[Array, "*batch"]
    log_prob: Float[Array, "*batch"]
    length: Int[Array, "*batch"]


def no_paths(shape: tuple[int, ...], max_steps: int) -> PathRecord:
    """Records of empty paths."""
    zeros = jnp.zeros((*shape, max_steps), weight_dtype())
    return PathRecord(jnp.zeros(shape, jnp.int32), zeros, zeros, zeros)


def extend_record(
    record: PathRecord, reply: Reply, took: Bool[Array, "W"]
) -> PathRecord:
    """Records after a turn in which the rows `took` made a step.

    Args:
        record: of W rows.
        reply: of the turn.
        took: rows whose numbers count.
    """
    steps = jnp.arange(record.log_potentials.shape[-1])
    here = (steps == record.length[:, None]) & took[:, None]
    potentials = sanitise(reply.log_potentials.astype(weight_dtype()))
    corrections = sanitise(reply.log_corrections.astype(weight_dtype()))
    log_probs = reply.log_probs.astype(weight_dtype())
    return PathRecord(
        record.length + took,
        jnp.where(here, potentials[:, None], record.log_potentials),
        jnp.where(here, corrections[:, None], record.log_corrections),
        jnp.where(here, log_probs[:, None], record.log_probs),
    )


def invalid(reply: Reply, took: Bool[Array, "W"]) -> Int[Array, ""]:
    """How many rows that took a step were told a number that is no weight."""
    bad = is_invalid(reply.log_corrections) | is_invalid(reply.log_potentials)
    return jnp.sum(bad & took, dtype=jnp.int32)


def log_density(
    record: PathRecord, path_log_weight: Callable[..., Array], power: float = 1.0
) -> Float[Array, "*batch"]:
    """log of p(x)^power exp(path_log_weight(x)), -inf where it is no density."""
    live = record.live
    score = sanitise(path_log_weight(record.log_potentials, live))
    if power == 1.0:
        # A target that never says log p can still be weighed by p itself.
        return score
    log_p = jnp.sum(jnp.where(live, record.log_probs, 0.0), axis=-1)
    return sanitise(score + (power - 1.0) * log_p)


def log_importance(
    record: PathRecord, path_log_weight: Callable[..., Array], power: float = 1.0
) -> tuple[Float[Array, "C"], Float[Array, ""]]:
    """Importance weights p^power exp(score) / q of whole paths, in two parts.

    Returns:
        Log weights less a number common to all, [C], and that number.
    """
    relative, largest = centre(path_log_weight(record.log_potentials, record.live))
    rest = log_p_over_q(record, power, jnp.zeros_like(record.length))
    return sanitise(relative + rest), largest


def log_ratio(
    new: PathRecord,
    old: PathRecord,
    path_log_weight: Callable[..., Array],
    power: float,
    start: Int[Array, "C"],
    exponent: Float[Array, ""] | float = 1.0,
) -> Float[Array, "C"]:
    """log of pi(new) q(old from start on) / (pi(old) q(new from start on)).

    Args:
        new, old: paths that share their first `start` steps.
        path_log_weight: the score s in pi = p^power exp(exponent s).
        power: of p.
        start: [C].
        exponent: of exp(s), positive.

    Returns:
        [C]; +inf where pi(old) is zero, so that every move from there is accepted.
    """
    score_new, score_old = (
        sanitise(path_log_weight(path.log_potentials, path.live)) for path in (new, old)
    )
    rest_new, rest_old = (log_p_over_q(path, power, start) for path in (new, old))
    # Scores may be thousands, and their difference is exact where the sum of a score
    # and a log probability is not.
    ratio = exponent * (score_new - score_old) + (rest_new - rest_old)
    dead_new, dead_old = (
        (score == -jnp.inf) | (rest == -jnp.inf)
        for score, rest in ((score_new, rest_new), (score_old, rest_old))
    )
    ratio = jnp.where(dead_new | jnp.isnan(ratio), -jnp.inf, ratio)
    return jnp.where(dead_old, jnp.inf, ratio)


def log_p_over_q(
    record: PathRecord, power: float, start: Int[Array, "C"]
) -> Float[Array, "C"]:
    """log p^power - log q of steps from `start` on, and (power - 1) log p before."""
    steps = jnp.arange(record.log_potentials.shape[-1])
    new = record.live & (steps >= start[..., None])
    corrections = jnp.sum(jnp.where(new, record.log_corrections, 0.0), axis=-1)
    if power == 1.0:
        # A target that never says log p can still be weighed by p itself.
        return sanitise(corrections)
    log_p = jnp.sum(jnp.where(record.live, record.log_probs, 0.0), axis=-1)
    return sanitise(corrections + (power - 1.0) * log_p)


def summary(
    record: PathRecord, path_log_weight: Callable[..., Array], power: float = 1.0
) -> ChainSample:
    """Numbers of paths under p(x)^power exp(path_log_weight(x))."""
    log_p = jnp.sum(jnp.where(record.live, record.log_probs, 0.0), axis=-1)
    last = jnp.maximum(record.length - 1, 0)[..., None]
    potential = jnp.take_along_axis(record.log_potentials, last, axis=-1)[..., 0]
    density = log_density(record, path_log_weight, power) + log_p
    return ChainSample(density, potential, log_p, record.length)
