"""The record that an explorer keeps of a path: the numbers of each step.

A record gives the log density of the path under p^power exp(path_log_weight) and under
the proposal, for the path and for any prefix, so that a move costs only its new steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tsi.explorer import Reply
from tsi.weights import centre, is_invalid, sanitise, weight_dtype


class PathRecord(NamedTuple):
    """Records of paths, each with space for T steps.

    Attributes:
        length: number of steps taken.
        log_potentials: log potential after each step; NaN and +inf as -inf.
        log_corrections: log p - log q of each step; NaN and +inf as -inf.
        log_probs: log p of each step.
    """

    length: Int[Array, "*batch"]
    log_potentials: Float[Array, "*batch T"]
    log_corrections: Float[Array, "*batch T"]
    log_probs: Float[Array, "*batch T"]

    @property
    def step_mask(self) -> Bool[Array, "*batch T"]:
        """Which steps have been taken, true up to `length`."""
        steps = jnp.arange(self.log_potentials.shape[-1])
        return steps < self.length[..., None]


class ChainSample(NamedTuple):
    """Summary of the current path of a chain, for traces and diagnostics.

    Attributes:
        log_density: unnormalised log density of the target.
        log_potential: the last log potential.
        log_prob: log p of the path.
        length: number of steps.
    """

    log_density: Float[Array, "*batch"]
    log_potential: Float[Array, "*batch"]
    log_prob: Float[Array, "*batch"]
    length: Int[Array, "*batch"]


def empty_paths(shape: tuple[int, ...], max_steps: int) -> PathRecord:
    """Records of empty paths."""
    zeros = jnp.zeros((*shape, max_steps), weight_dtype())
    return PathRecord(jnp.zeros(shape, jnp.int32), zeros, zeros, zeros)


def extend_record(
    record: PathRecord, reply: Reply, step_mask: Bool[Array, "W"]
) -> PathRecord:
    """Append the step of a turn to the records of the rows in `step_mask`.

    Args:
        record: of W rows.
        reply: of the turn.
        step_mask: rows that took a step.
    """
    steps = jnp.arange(record.log_potentials.shape[-1])
    is_next = (steps == record.length[:, None]) & step_mask[:, None]
    potentials = sanitise(reply.log_potentials.astype(weight_dtype()))
    corrections = sanitise(reply.log_corrections.astype(weight_dtype()))
    log_probs = reply.log_probs.astype(weight_dtype())
    return PathRecord(
        record.length + step_mask,
        jnp.where(is_next, potentials[:, None], record.log_potentials),
        jnp.where(is_next, corrections[:, None], record.log_corrections),
        jnp.where(is_next, log_probs[:, None], record.log_probs),
    )


def count_invalid(reply: Reply, step_mask: Bool[Array, "W"]) -> Int[Array, ""]:
    """Count the rows that took a step and got a weight that is NaN or +inf."""
    is_invalid_row = is_invalid(reply.log_corrections) | is_invalid(
        reply.log_potentials
    )
    return jnp.sum(is_invalid_row & step_mask, dtype=jnp.int32)


def log_density(
    record: PathRecord, path_log_weight: Callable[..., Array], power: float = 1.0
) -> Float[Array, "*batch"]:
    """log of p(x)^power exp(path_log_weight(x)); NaN and +inf as -inf."""
    step_mask = record.step_mask
    score = sanitise(path_log_weight(record.log_potentials, step_mask))
    if power == 1.0:
        # Needs no log p, which a target without `log_prob` does not report.
        return score
    log_p = jnp.sum(jnp.where(step_mask, record.log_probs, 0.0), axis=-1)
    return sanitise(score + (power - 1.0) * log_p)


def log_importance(
    record: PathRecord, path_log_weight: Callable[..., Array], power: float = 1.0
) -> tuple[Float[Array, "C"], Float[Array, ""]]:
    """Importance weights p^power exp(score) / q of complete paths, in two parts.

    Returns:
        Log weights minus their common offset, [C], and that offset.
    """
    relative, largest = centre(path_log_weight(record.log_potentials, record.step_mask))
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
    """log of pi(new) q(old after start) / (pi(old) q(new after start)).

    Args:
        new, old: paths that share their first `start` steps.
        path_log_weight: the score s in pi = p^power exp(exponent s).
        power: of p.
        start: [C].
        exponent: of exp(s), positive.

    Returns:
        [C]; +inf if pi(old) is zero, so that every move from there is accepted.
    """
    score_new, score_old = (
        sanitise(path_log_weight(path.log_potentials, path.step_mask))
        for path in (new, old)
    )
    rest_new, rest_old = (log_p_over_q(path, power, start) for path in (new, old))
    # Scores may be in the thousands. Their difference is exact, but a sum of a score
    # and a log probability is rounded.
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
    """log p^power - log q of the steps after `start`, plus (power - 1) log p before."""
    steps = jnp.arange(record.log_potentials.shape[-1])
    new = record.step_mask & (steps >= start[..., None])
    corrections = jnp.sum(jnp.where(new, record.log_corrections, 0.0), axis=-1)
    if power == 1.0:
        # Needs no log p, which a target without `log_prob` does not report.
        return sanitise(corrections)
    log_p = jnp.sum(jnp.where(record.step_mask, record.log_probs, 0.0), axis=-1)
    return sanitise(corrections + (power - 1.0) * log_p)


def summarise(
    record: PathRecord, path_log_weight: Callable[..., Array], power: float = 1.0
) -> ChainSample:
    """Summarise paths under the target p(x)^power exp(path_log_weight(x))."""
    log_p = jnp.sum(jnp.where(record.step_mask, record.log_probs, 0.0), axis=-1)
    last = jnp.maximum(record.length - 1, 0)[..., None]
    potential = jnp.take_along_axis(record.log_potentials, last, axis=-1)[..., 0]
    density = log_density(record, path_log_weight, power) + log_p
    return ChainSample(density, potential, log_p, record.length)
