"""Tests of the reported numbers of invalid potentials and recoveries.

The sampler gets a known number of potentials that are NaN or +inf, for particles that
count and for others. `num_invalid` must be the number of the former. Then all
potentials are -inf, which is valid and must be reported as a recovery.

A particle counts if it is unfinished and has weight. Invalid corrections count in the
same way; a search without a target need not read them. The check is skipped if
`path_log_weight` does not depend on potentials (`uniform`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check
from tsi.bench.source_lines import places_of_functions
from tsi.explorer import Explorer, Reply
from tsi.sampler import Sampler

MAX_STEPS = 4
STEPS = ("usual", "invalid", "usual", "invalid correction", "usual", "-inf")
"""The kind of the numbers that `tell` gets, step by step."""


def counts_check(
    sampler: Sampler | Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether `num_invalid` and `num_recoveries` are right."""
    find_violation = _first_turn if isinstance(sampler, Explorer) else _all_steps
    if not _uses_potentials(sampler):
        reason = "its path weight does not depend on log potentials"
        return Check("counts", None, f"not applicable: {reason}")
    try:
        violation = find_violation(sampler, num_particles, key)
    except _NoCountsError as error:
        return Check("counts", None, str(error))
    where = places_of_functions(sampler, "tell") if violation else ""
    detail = "the counts of invalid and lost are right"
    return Check("counts", not violation, violation or detail, where)


class _NoCountsError(Exception):
    """The sampler reports no counts, so that there is nothing to verify."""


def _uses_potentials(sampler: Sampler | Explorer) -> bool:
    claim = sampler.path_log_weight
    if claim is None:
        return True
    weight = claim(jnp.array([0.0, -jnp.inf]), jnp.ones(2, bool))
    return bool(weight == -jnp.inf)


def _count(info: Any, name: str) -> int:
    value = info.get(name) if isinstance(info, dict) else getattr(info, name, None)
    if value is None:
        raise _NoCountsError(f"not applicable: the sampler's info has no {name}")
    return int(value)


def _all_steps(sampler: Any, num_particles: int, key: Key[Array, ""]) -> str:
    """Run the steps with all particles unfinished, and again with one finished."""
    for some_end in (False, True) if num_particles > 1 else (False,):
        violation = _run_steps(sampler, num_particles, key, some_end)
        if violation:
            return violation
    return ""


def _run_steps(
    sampler: Any, num_particles: int, key: Key[Array, ""], some_end: bool
) -> str:
    ask, tell = jax.jit(sampler.ask), jax.jit(sampler.tell)
    keys = jax.random.split(key, 2 * len(STEPS) + 1)
    state = sampler.init(keys[0], num_particles)
    ordinary = np.linspace(-0.5, 0.5, num_particles, dtype=np.float32)
    zeros = np.zeros(num_particles, np.float32)
    last = np.arange(num_particles) == num_particles - 1
    for step, kind in enumerate(STEPS):
        state, _ = ask(keys[2 * step + 1], state)
        log_potentials, corrections, expected = ordinary.copy(), zeros, 0
        counts = np.asarray(~state.finished & (state.log_weights > -np.inf))
        if kind == "invalid":
            log_potentials, expected = _insert_invalid(
                ordinary, counts, np.asarray(state.finished)
            )
        if kind == "invalid correction" and sampler.path_log_weight is not None:
            corrections, expected = _insert_invalid(
                zeros, counts, np.asarray(state.finished)
            )
        if kind == "-inf":
            log_potentials[:] = -np.inf
        ended = (last & (step == 0) & some_end) | np.asarray(state.finished)
        had_weight = bool(counts.any())
        numbers = log_potentials, corrections, ended
        state, info = tell(keys[2 * step + 2], state, *numbers)
        invalid = _count(info, "num_invalid")
        if invalid != expected:
            return (
                f"num_invalid is {invalid} where {expected} particles that are "
                f"unfinished and have weight got NaN or +inf"
            )
        recoveries = _count(info, "num_recoveries")
        if kind == "usual" and recoveries:
            return f"num_recoveries is {recoveries} where all weights are ordinary"
        loses_all = kind == "-inf" and had_weight and not some_end
        if loses_all and sampler.path_log_weight and not recoveries:
            return "num_recoveries is 0 where every particle got -inf"
    return ""


def _insert_invalid(
    ordinary: np.ndarray, counts: np.ndarray, finished: np.ndarray
) -> tuple[np.ndarray, int]:
    """Replace some numbers by NaN and +inf; also return how many of these count."""
    log_potentials = ordinary.copy()
    # Numbers of particles that have finished or have no weight do not count.
    log_potentials[~counts] = np.nan
    log_potentials[finished] = np.inf
    places = np.flatnonzero(counts)
    # Not all numbers, so that some weight is left.
    selection = places[: max(1, len(places) // 2)]
    log_potentials[selection] = np.where(np.arange(len(selection)) % 2, np.inf, np.nan)
    return log_potentials, len(selection)


def _first_turn(explorer: Any, num_particles: int, key: Key[Array, ""]) -> str:
    """An explorer's first turn, whose rows all extend the empty prefix."""
    key_init, key_ask, key_tell = jax.random.split(key, 3)
    plan = explorer.plan(num_particles, MAX_STEPS)
    state = explorer.init(key_init, num_particles, MAX_STEPS)
    state, request = jax.jit(explorer.ask)(key_ask, state)
    extended = np.asarray(request.extend) & (np.asarray(request.slots) < plan.stored)
    if not extended.any():
        raise _NoCountsError("not applicable: the first turn keeps no row")
    rows = len(extended)
    ordinary = np.linspace(-0.5, 0.5, rows, dtype=np.float32)
    zeros, none = np.zeros(rows, np.float32), np.zeros(rows, bool)
    invalid_potentials, count = _insert_invalid(ordinary, extended, none)
    invalid_corrections, _ = _insert_invalid(zeros, extended, none)
    replies = [(ordinary, zeros, 0), (invalid_potentials, zeros, count)]
    if explorer.path_log_weight is not None:
        replies.append((ordinary, invalid_corrections, count))
    for log_potentials, corrections, expected in replies:
        reply = Reply(*map(jnp.asarray, (log_potentials, corrections, zeros - 1, none)))
        _, info = jax.jit(explorer.tell)(key_tell, state, reply)
        invalid = _count(info, "num_invalid")
        if invalid != expected:
            return (
                f"num_invalid is {invalid} where {expected} of {int(extended.sum())} "
                "extended rows got NaN or +inf"
            )
    return ""
