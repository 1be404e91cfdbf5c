"""The schedule of a lane: pure functions of how many rows write, wait and have ended.

They affect only the speed. No sample depends on them, since random numbers depend only
on the problem, the particle, the step and the token.
"""

import numpy as np
from jaxtyping import Bool, Int


def num_to_enter(free: int, remaining: int, places: int) -> int:
    """How many problems enter now.

    Several enter together, since an entry costs as much as a turn of all problems.

    Args:
        free: number of free places.
        remaining: number of problems that have not entered yet.
        places: number of places.
    """
    is_enough = free >= min(remaining, -(-places // 4))
    return min(free, remaining) if is_enough else 0


def num_to_wait_for(
    problems: Int[np.ndarray, " n"],
    *,
    slots: int,
    part: float,
    queued: bool,
    smaller: int,
) -> int:
    """Number of rows that must end their steps before a burst returns.

    Args:
        problems: the place of the problem of each row that writes.
        slots: number of slots.
        part: the share of the slots that must have ended; 1 for all rows.
        queued: whether other rows wait for a slot.
        smaller: rows of the next smaller program that is known; 0 if there is none.
    """
    active, min_ended = len(problems), int(part * slots)
    if part == 1:
        return active
    if queued:
        return min(max(min_ended, 1), active)
    # No sampler decides before all rows of its problem have ended.
    counts = np.bincount(problems)
    min_ended = max(int(counts[counts > 0].min()), min_ended)
    # With fewer rows a smaller program is enough.
    return min(min_ended, active - smaller if smaller else active)


def slots_to_read(
    has_ended: Bool[np.ndarray, " R"],
    active: Bool[np.ndarray, " R"],
    problems: Int[np.ndarray, " R"],
    counts: Int[np.ndarray, " R"],
    reads: int,
    *,
    all_now: bool,
) -> Int[np.ndarray, " A"]:
    """Slots whose steps are read now, ordered by the length of the step.

    Slots are ordered because a batch is padded to its longest step. A step is left for
    a later, fuller batch if neither its problem nor a queued row waits for it.

    Args:
        has_ended: slots with a step that has not been read.
        active: slots that write.
        problems: the place of the problem in each slot.
        counts: tokens of each step.
        reads: number of rows of a batch.
        all_now: whether all steps are read now.
    """
    at = np.flatnonzero(has_ended)
    if not all_now:
        can_wait = np.isin(problems[at], problems[active])
        needed = int((~can_wait).sum())
        whole = max(-(-needed // reads), len(at) // reads) * reads
        at = at[np.argsort(can_wait, kind="stable")][:whole]
    return at[np.argsort(counts[at], kind="stable")]


def width_of_step(longest: int, max_tokens: int) -> int:
    """The width at which steps are read; few widths, so that few programs are compiled.

    Args:
        longest: tokens of the longest step.
        max_tokens: tokens that a step can have.
    """
    width = 32
    while width < longest:
        width *= 4
    return min(width, max_tokens)
