"""The exact sign-flip test of paired differences."""

import numpy as np
from jaxtyping import Int


def sign_flip_p_value(totals: Int[np.ndarray, "P"]) -> float:
    """Exact two-sided p-value of integer differences under random signs.

    Args:
        totals: difference of each problem, an integer.
    """
    sizes = np.abs(totals[totals != 0])
    # The sum of s_p |d_p| is twice the sum of those with sign +1, minus all.
    reach, everything = abs(int(totals.sum())), int(sizes.sum())
    chances = np.zeros(everything + 1)
    chances[0] = 1.0
    for size in sizes:
        chances[size:] = 0.5 * (chances[size:] + chances[:-size])
        chances[:size] *= 0.5
    values = 2 * np.arange(everything + 1) - everything
    return float(min(chances[np.abs(values) >= reach].sum(), 1.0))
