"""Convert the scores of a reward function to log-odds.

Samplers use log-odds as weights. A function that scores texts, such as a verifier,
often returns a probability instead, and 1 for a right answer. The log-odds of 1 are
+inf, which is not a valid weight. A reward therefore declares its scale, and a
probability of

    1 becomes the log-odds of the largest float32 below 1, log(2^24 - 1) = 16.64,
    0 becomes -inf, an impossible prefix, unless a floor is given.

A function that averages in float32 may return 1.0000001 for 1. A number that is at most
1e-6 below 0 or above 1 is therefore read as 0 or 1. A number further outside becomes
NaN, which gives weight zero and is counted as invalid.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.numeric_arguments import check_numbers

SCALES = ("log-odds", "probability")

CERTAIN = 1.0 - 2.0**-24
"""The largest float32 below 1."""

ROUNDING = 1e-6
"""A number this far outside [0, 1] is a rounded probability of 0 or 1."""


def check_scale(scale: str, floor: float | None) -> None:
    """Refuse an unknown scale, and a floor that is not a probability.

    Raises:
        UnknownNameError: for an unknown scale.
        ConfigurationError: for a floor that is not a number or is outside (0, 1), or a
            floor with the scale log-odds.
    """
    if scale not in SCALES:
        raise UnknownNameError("scale of rewards", scale, SCALES)
    if floor is None:
        return
    if scale == "log-odds":
        raise ConfigurationError(
            f"A floor of {floor} is the smallest probability of a reward, and this "
            'reward returns log-odds. Give scale="probability", or no floor.'
        )
    check_numbers("A reward of probabilities", floor=floor)
    if not 0.0 < floor < 1.0:
        raise ConfigurationError(
            f"The floor of a reward must be a probability above 0 and below 1, and it "
            f"is {floor}."
        )


def log_odds_of(
    values: ArrayLike,
    scale: str = "probability",
    floor: float | None = None,
    dtype: Any = np.float32,
) -> Float[np.ndarray, "..."]:
    """Log-odds of the scores of a reward function.

    Args:
        values: probabilities, or log-odds, which are not changed. A probability of at
            most 1e-6 below 0 or above 1 counts as 0 or 1; others outside [0, 1] become
            NaN.
        scale: "probability" or "log-odds".
        floor: smaller probabilities are raised to this value; None keeps 0 impossible.
        dtype: type of the log-odds.
    """
    values = np.asarray(values, np.float64)
    # Log-odds beyond the range of the type become infinite.
    with np.errstate(over="ignore", divide="ignore"):
        if scale == "log-odds":
            return values.astype(dtype)
        valid = (values >= -ROUNDING) & (values <= 1.0 + ROUNDING)
        p = np.clip(np.where(valid, values, 0.5), floor or 0.0, CERTAIN)
        log_odds = np.log(p) - np.log1p(-p)
        return np.where(valid, log_odds, np.nan).astype(dtype)
