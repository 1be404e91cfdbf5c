"""From what a reward hands out to log-odds.

Samplers weigh by log-odds. A function that judges texts, a verifier for one, often says
a probability instead, and says 1 of what is right: log-odds of +inf, which are no
weight. So a reward says which of the two it hands out, and of probabilities

    1 becomes the log-odds of the largest float32 below 1, log(2^24 - 1) = 16.64,
    0 becomes -inf, an impossible prefix, unless a floor is given.

What is no probability becomes NaN, which has no weight and is counted.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from tsi.errors import ConfigurationError, UnknownNameError

SCALES = ("log-odds", "probability")

CERTAIN = 1.0 - 2.0**-24
"""The largest float32 below 1."""


def check_scale(scale: str, floor: float | None) -> None:
    """Refuse a scale that does not exist, and a floor that is none.

    Raises:
        UnknownNameError: for another scale.
        ConfigurationError: for a floor outside (0, 1), or one of log-odds.
    """
    if scale not in SCALES:
        raise UnknownNameError("scale of rewards", scale, SCALES)
    if floor is None:
        return
    if scale == "log-odds":
        raise ConfigurationError(
            f"A floor of {floor} is the least probability that a reward may hand out, "
            'and this one hands out log-odds. Give scale="probability", or no floor.'
        )
    if not 0.0 < floor < 1.0:
        raise ConfigurationError(
            f"The floor of a reward is a probability above 0 and below 1, and it is "
            f"{floor}."
        )


def log_odds_of(
    values: ArrayLike,
    scale: str = "probability",
    floor: float | None = None,
    dtype: Any = np.float32,
) -> Float[np.ndarray, "..."]:
    """Log-odds of what a reward handed out.

    Args:
        values: probabilities, or log-odds, which stay as they are.
        scale: which of the two.
        floor: the least probability that counts; None keeps 0 impossible.
        dtype: of the log-odds.
    """
    values = np.asarray(values, np.float64)
    # Log-odds beyond the type are infinite.
    with np.errstate(over="ignore", divide="ignore"):
        if scale == "log-odds":
            return values.astype(dtype)
        valid = (values >= 0.0) & (values <= 1.0)
        p = np.clip(np.where(valid, values, 0.5), floor or 0.0, CERTAIN)
        log_odds = np.log(p) - np.log1p(-p)
        return np.where(valid, log_odds, np.nan).astype(dtype)
