"""What a sampler reports of invalid potentials and lost populations is what it met.

A sampler that says 0 whatever happens looks as if nothing ever did. So it is told known
numbers of NaN and +inf, for particles that count and for some that do not, and
`num_invalid` must be the number of those that do; then nothing but -inf, which is
valid, and must be a recovery.

A particle counts that goes on and has weight. Whether potentials count is read off
`path_log_weight`: where a path of weight zero is not told as one (`uniform`, which
looks at no score), nothing is asked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tsi.bench.robustness import Check
from tsi.bench.source_lines import blamed
from tsi.explorer import Explorer, Reply
from tsi.sampler import Sampler

MAX_STEPS = 4


def counts_check(
    sampler: Sampler | Explorer, num_particles: int, key: Key[Array, ""]
) -> Check:
    """Whether `num_invalid` and `num_recoveries` are what they must be."""
    look = _first_turn if isinstance(sampler, Explorer) else _all_steps
    if not _scores_count(sampler):
        reason = "its path weight does not depend on log potentials"
        return Check("counts", None, f"not applicable: {reason}")
    try:
        broken = look(sampler, num_particles, key)
    except _NoCountsError as error:
        return Check("counts", None, str(error))
    where = blamed(sampler, "tell") if broken else ""
    said = "as many invalid and lost as it was told"
    return Check("counts", not broken, broken or said, where)


class _NoCountsError(Exception):
    """The sampler reports no counts, so that there is nothing to verify."""


def _scores_count(sampler: Sampler | Explorer) -> bool:
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
    """Four steps, once while all go on and once with a particle that has finished."""
    for some_end in (False, True) if num_particles > 1 else (False,):
        broken = _four_steps(sampler, num_particles, key, some_end)
        if broken:
            return broken
    return ""


def _four_steps(
    sampler: Any, num_particles: int, key: Key[Array, ""], some_end: bool
) -> str:
    ask, tell = jax.jit(sampler.ask), jax.jit(sampler.tell)
    keys = jax.random.split(key, 9)
    state = sampler.init(keys[0], num_particles)
    usual = np.linspace(-0.5, 0.5, num_particles, dtype=np.float32)
    nothing = np.zeros(num_particles, np.float32)
    last = np.arange(num_particles) == num_particles - 1
    for step, kind in enumerate(("usual", "invalid", "usual", "-inf")):
        state, _ = ask(keys[2 * step + 1], state)
        told, expected = usual.copy(), 0
        counts = np.asarray(~state.finished & (state.log_weights > -np.inf))
        if kind == "invalid":
            told, expected = _with_invalid(usual, counts, np.asarray(state.finished))
        if kind == "-inf":
            told[:] = -np.inf
        ended = (last & (step == 0) & some_end) | np.asarray(state.finished)
        had_weight = bool(counts.any())
        state, info = tell(keys[2 * step + 2], state, told, nothing, ended)
        invalid = _count(info, "num_invalid")
        if invalid != expected:
            return (
                f"num_invalid is {invalid} where {expected} particles that go on and "
                f"have weight were told NaN or +inf"
            )
        recoveries = _count(info, "num_recoveries")
        if kind == "usual" and recoveries:
            return f"num_recoveries is {recoveries} where all weights are ordinary"
        all_lost = kind == "-inf" and had_weight and not some_end
        if all_lost and sampler.path_log_weight and not recoveries:
            return "num_recoveries is 0 where every particle is told -inf"
    return ""


def _with_invalid(
    usual: np.ndarray, counts: np.ndarray, finished: np.ndarray
) -> tuple[np.ndarray, int]:
    """Numbers with NaN and +inf among them, and how many of these count."""
    told = usual.copy()
    # What has finished or has no weight is not looked at.
    told[~counts] = np.nan
    told[finished] = np.inf
    places = np.flatnonzero(counts)
    # Not all of them, so that some weight is left.
    chosen = places[: max(1, len(places) // 2)]
    told[chosen] = np.where(np.arange(len(chosen)) % 2, np.inf, np.nan)
    return told, len(chosen)


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
    usual = np.linspace(-0.5, 0.5, rows, dtype=np.float32)
    for told, expected in (
        (usual, 0),
        _with_invalid(usual, extended, np.zeros(rows, bool)),
    ):
        nothing = jnp.zeros(rows, jnp.float32)
        reply = Reply(jnp.asarray(told), nothing, nothing - 1.0, jnp.zeros(rows, bool))
        _, info = jax.jit(explorer.tell)(key_tell, state, reply)
        invalid = _count(info, "num_invalid")
        if invalid != expected:
            return (
                f"num_invalid is {invalid} where {expected} of {int(extended.sum())} "
                "extended rows were told NaN or +inf"
            )
    return ""
