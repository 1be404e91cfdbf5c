"""The numbers of a reward on the host, put with the rows on the device."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from tsi.engine.programs import Programs, Told
from tsi.engine.rows import Stored
from tsi.host_reward import HostReward, Written, scores_of
from tsi.weights import weight_dtype


class Scored(NamedTuple):
    """What scoring has made of rows, and the rows that failed, by their place."""

    stored: Stored
    told: Told
    errors: dict[int, Exception]


def score_on_host(
    programs: Programs,
    reward: HostReward,
    stored: Stored,
    rows: Int[np.ndarray, " n"],
    told: Told,
    before: Int[np.ndarray, " n"],
    depths: Int[np.ndarray, " n"],
    asked: list[Any],
    params: Any,
    size: int,
) -> Scored:
    """Ask a reward on the host about rows that have taken a step.

    Args:
        programs: compiled ones.
        reward: what is asked.
        stored: all rows.
        rows: which.
        told: what is known of them.
        before: tokens that they had before the step. A step that cannot be repeated is
            none: its row has as many as before, and stays as it was.
        depths: of the step.
        asked: what the reward has prepared of each row's problem.
        params: weights and temperatures.
        size: rows that the programs are compiled for.
    """
    took, pad = told.lengths > before, (0, size - len(rows))
    at = np.flatnonzero(took)
    if not len(at):
        return Scored(stored, told, {})
    # Rows beyond the store are lost.
    beyond = stored.rows.lengths.shape[0]
    padded = np.pad(np.where(took, rows, beyond), pad, constant_values=beyond)
    solutions = jax.device_get(programs.written(stored, padded))
    written = [
        Written(
            asked[i],
            solutions.tokens[i, : told.lengths[i]].tolist(),
            bool(told.finished[i] & ~solutions.truncated[i]),
            bool(told.finished[i]),
        )
        for i in at
    ]
    log_odds = np.zeros(size, weight_dtype())
    log_odds[at], errors = scores_of(reward, written)
    stored, potentials = programs.score(
        stored, padded, np.pad(depths, pad), log_odds, None, params
    )
    now = jax.device_get(potentials)[: len(rows)]
    scored: Any = np.where(took, now, told.log_potentials)
    told = told._replace(log_potentials=scored)
    return Scored(stored, told, {int(at[i]): error for i, error in errors.items()})
