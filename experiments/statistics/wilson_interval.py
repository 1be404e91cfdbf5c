"""Wilson's score interval of a proportion (Wilson 1927)."""

import math
from typing import NamedTuple

from scipy import special


class Interval(NamedTuple):
    """An interval; NaN if there is none."""

    low: float
    high: float


def wilson_interval(
    proportion: float, number: float | int, level: float = 0.95
) -> Interval:
    """Wilson's score interval of a proportion.

    Args:
        proportion: share of successes.
        number: of independent observations; need not be whole.
        level: coverage.
    """
    z = float(special.ndtri(0.5 + level / 2))
    scale = 1 + z**2 / number
    centre = (proportion + z**2 / (2 * number)) / scale
    variance = proportion * (1 - proportion) / number + z**2 / (4 * number**2)
    half = z * math.sqrt(variance) / scale
    # At 0 and 1 an end is exact, and rounding may not move it.
    low = 0.0 if proportion == 0 else max(centre - half, 0.0)
    high = 1.0 if proportion == 1 else min(centre + half, 1.0)
    return Interval(low, high)
