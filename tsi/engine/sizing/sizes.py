"""The sizes of a lane, and the few sizes for which programs are compiled."""

from typing import NamedTuple

from tsi.explorer import Plan
from tsi.models.buckets import bucket_size

BLOCK = 16
"""Positions per block for models with large caches."""
BURST = 16
"""The maximum number of tokens of a burst."""
PART = 0.125
"""The share of the slots that must have ended their steps for a burst to stop."""
IN_FLIGHT = 4
"""Rows of unfinished problems per slot. The rows that have ended their steps wait for
the slowest row of their problem, and other problems use their slots meanwhile."""
IN_FLIGHT_CHEAP = 2
"""The same for models so small that the host limits the speed."""
CHEAP = 2e9
"""FLOPs per token of all slots below which the host limits the speed."""
WIDE = 64
"""Rows that make matrix products wide enough; fewer are slower per row."""
READS = 8
"""Rows whose steps are read together. With a question of 30 tokens this gives a matrix
that is large enough for two cores, and few of its rows are padding."""
COMPILATION = 1.5e11
"""FLOPs that take as long as the compilation of a program, on a CPU of two cores. On
faster devices compilation takes longer as well."""
SHARED = 512
"""Prompts of at least this many positions are read once for all rows of a problem. For
shorter ones the overhead is larger than the saving."""
SHARED_ROWS = 4
"""The minimum number of rows of a problem for which this saves time."""
PREFILL = 16384
"""Number of prompt tokens that are read together."""


class Sizes(NamedTuple):
    """The sizes of a lane.

    Attributes:
        slots: R, number of rows for which tokens are drawn together.
        problems: P, number of problems that run in the lane at the same time.
        block: positions per block.
        burst: the maximum number of tokens of a burst.
        part: fraction of the slots that must have ended for a burst to stop while other
            rows wait for slots; 1 if stopping costs more than drawing tokens.
        reads: rows whose steps are read together, by the reward or by the policy.
        prefill: number of prompt tokens that are read together.
        shrinks: whether programs of fewer rows are worth compiling.
        shares: whether the common past of a problem's rows is read once for all of
            them.
        price: cost of compiling a program, in tokens of one row.
    """

    slots: int
    problems: int
    block: int
    burst: int
    part: float
    reads: int
    prefill: int
    shrinks: bool
    shares: bool
    price: float = 0.0

    def prompts(self, width: int) -> int:
        """Number of prompts of `width` positions that are read together."""
        return max(1, min(self.problems, self.prefill // width))


def half_of(sizes: Sizes) -> Sizes:
    """Sizes of half as many slots and problems, at least one of each."""

    def halve(count: int) -> int:
        return max(1, count // 2)

    return sizes._replace(
        slots=halve(sizes.slots),
        problems=halve(sizes.problems),
        reads=min(sizes.reads, halve(sizes.slots)),
        prefill=halve(sizes.prefill),
    )


def room_of(needed: int) -> int:
    """Positions of dense rows: 64, 128, 192, 256, 384, 512, 768 and so on."""
    return bucket_size(needed, 64)


def coarse_room_of(needed: int) -> int:
    """The powers of two among the sizes of `room_of`, from 128 on."""
    return max(128, 1 << (needed - 1).bit_length())


def width_of(count: int, max_width: int, shrinks: bool, *, factor: int = 4) -> int:
    """Rows of a program: `max_width`, divided by a power of `factor` if `shrinks`."""
    size = max_width
    while shrinks and size >= factor * count and size % factor == 0 and size > 4:
        size //= factor
    return size


def num_slots_of(count: int, max_rows: int, shrinks: bool) -> int:
    """Number of computed slots: `max_rows` times 1, 3/4, 1/2, 1/4, ..."""
    if not shrinks or 4 * count > 3 * max_rows or max_rows % 4:
        return max_rows
    if 2 * count > max_rows:
        return 3 * max_rows // 4
    return width_of(count, max_rows // 2, shrinks, factor=2)


def rows_in_flight(max_rows: int, flops: float) -> int:
    """The maximum number of rows of the problems that a group of devices runs at once.

    Args:
        max_rows: as :class:`tsi.engine.engine.Engine` has it.
        flops: FLOPs per token of one row.
    """
    is_cheap = flops * max_rows < CHEAP
    return max_rows * (IN_FLIGHT_CHEAP if is_cheap else IN_FLIGHT)


def problems_in_work(plan: Plan, in_flight: int, max_stored: int) -> int:
    """The maximum number of problems of a plan that run at once, at least one.

    Args:
        plan: of a problem.
        in_flight: the maximum number of rows of all these problems.
        max_stored: as :class:`tsi.engine.engine.Engine` has it.
    """
    max_problems = in_flight // plan.rows
    if plan.stored:
        max_problems = min(max_problems, max_stored // plan.stored)
    return max(1, max_problems)


def sizes_of(
    plan: Plan,
    problems: int,
    width: int,
    *,
    flops: float,
    step_tokens: int,
    max_rows: int,
    in_flight: int,
    max_problems: int,
) -> Sizes:
    """The sizes of a lane of one group of devices.

    Args:
        plan: of a problem.
        problems: number of problems of the group.
        width: positions of the prompts.
        flops: FLOPs per token of one row.
        step_tokens: the maximum number of tokens of a step.
        max_rows: the maximum number of rows for which tokens are drawn together.
        in_flight: the largest number of rows of the problems that run at once.
        max_problems: the maximum number of problems that run at once.
    """
    places = 1
    while places < problems:
        places *= 2
    rows = problems * plan.rows
    shrinks = flops * min(max_rows, rows) >= CHEAP
    # The other rows wait for a slot, so that no slot waits for a row.
    share = rows * max_rows // in_flight
    min_slots = max(share, min(rows // 2, WIDE), min(rows, 16))
    if not shrinks:
        min_slots = rows
    slots = 1
    while slots < min_slots:
        slots *= 2
    return Sizes(
        min(slots, max_rows),
        min(places, max_problems),
        BLOCK if shrinks else 4 * BLOCK,
        min(step_tokens, BURST),
        PART if shrinks else 1.0,
        min(slots, READS, max_rows) if shrinks else min(slots, max_rows),
        PREFILL,
        shrinks,
        shrinks and plan.rows >= SHARED_ROWS and width >= SHARED,
        COMPILATION / flops if shrinks else 0.0,
    )
