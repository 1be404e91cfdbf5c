r"""How many problems a paired comparison needs, from measured discordant pairs.

Let m be the mean square of the differences by problem (with one seed the share of
discordant pairs), and d the true difference. The mean difference has variance m / n if
there is no difference, and (m - d^2) / n otherwise, so the test of level \alpha finds
the difference with probability `power` if

    n = (z_{1 - \alpha/2} \sqrt m + z_{power} \sqrt{m - d^2})^2 / d^2 + 1 / (S d).

The last term corrects for the exact test, whose p-values are multiples of a step. With
one seed a difference of d needs a mean square of at least d, and with S seeds of d / S;
smaller measured values are raised to it.

References: Miettinen 1968, Biometrics 24; Connor 1987, Biometrics 43, the sample size;
Casagrande, Pike and Smith 1978, Biometrics 34, the correction.
"""

import math

from scipy import special

from tsi.errors import ConfigurationError


def problems_needed(
    mean_square: float,
    difference: float,
    *,
    num_seeds: int = 1,
    level: float = 0.05,
    power: float = 0.8,
) -> int:
    """Number of problems at which a paired test finds a difference.

    Args:
        mean_square: of the differences by problem, from `PairedDifference`.
        difference: that is to be found, for example 0.05.
        num_seeds: S, as in the measurement.
        level: of the two-sided test.
        power: probability that the test finds it.

    Raises:
        ConfigurationError: a number is outside its range.
    """
    if not (0 < difference < 1 and 0 <= mean_square <= 1 and 0 < level < 1 > power > 0):
        raise ConfigurationError(
            f"A sample size needs a difference, level and power between 0 and 1 and a "
            f"mean square of at most 1, got {difference}, {level}, {power} and "
            f"{mean_square}; differences are shares, so that 5 points are 0.05."
        )
    # With S seeds d_p is a multiple of 1/S, so that E[d^2] >= E|d| / S.
    square = max(mean_square, difference / num_seeds, difference**2)
    z_level, z_power = special.ndtri([1 - level / 2, power])
    root = z_level * math.sqrt(square) + z_power * math.sqrt(square - difference**2)
    correction = 1 / (num_seeds * difference)
    return math.ceil((root / difference) ** 2 + correction)
