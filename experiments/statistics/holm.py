"""Holm's correction of p-values for multiple comparisons (Holm 1979)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def holm(p_values: Sequence[float]) -> Float[np.ndarray, "K"]:
    """Holm's adjusted p-values, for all comparisons together.

    Args:
        p_values: of K comparisons.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result
