"""How much is worked on at once, and the few sizes that programs are compiled for."""

from typing import NamedTuple


class Sizes(NamedTuple):
    """How much a lane works on at once.

    Attributes:
        slots: R, rows that write tokens together.
        problems: P, in the lane at once.
        block: positions of a block.
        burst: the most tokens that are written before the host looks.
        part: the share of the slots that must have ended for the host to look, while
            other rows wait for them; 1 where looking costs more than writing.
        reads: rows whose steps are read together, by the reward or by the policy.
        prefill: tokens of prompts that are read together.
        shrinks: whether programs of fewer rows are worth compiling.
        shares: whether what a problem's rows have in common is read once for all.
        price: of compiling a program, in tokens of one row.
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
        """How many problems' prompts, of so many positions, are read together."""
        return max(1, min(self.problems, self.prefill // width))


def half_of(sizes: Sizes) -> Sizes:
    """Half as much at once, one at least of everything."""

    def half(count: int) -> int:
        return max(1, count // 2)

    return sizes._replace(
        slots=half(sizes.slots),
        problems=half(sizes.problems),
        reads=min(sizes.reads, half(sizes.slots)),
        prefill=half(sizes.prefill),
    )


def room_of(needed: int) -> int:
    """Positions of dense rows: 64, 128, 192, 256, 384, 512, 768 and so on."""
    size = 64
    while size < needed:
        size = size * 4 // 3 if size % 3 == 0 else max(128, size * 3 // 2)
    return size


def coarse_room_of(needed: int) -> int:
    """Of these the powers of two from 128 on."""
    return max(128, 1 << (needed - 1).bit_length())


def width_of(count: int, most: int, shrinks: bool, *, factor: int = 4) -> int:
    """Rows of a program: `most`, or if it shrinks that by a power of `factor`."""
    size = most
    while shrinks and size >= factor * count and size % factor == 0 and size > 4:
        size //= factor
    return size


def chosen_of(count: int, most: int, shrinks: bool) -> int:
    """Slots that are computed, of `most`: all, three quarters, half, a quarter, ..."""
    if not shrinks or 4 * count > 3 * most or most % 4:
        return most
    if 2 * count > most:
        return 3 * most // 4
    return width_of(count, most // 2, shrinks, factor=2)
