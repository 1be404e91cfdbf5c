"""Targets with known answers: tables, and a linear-Gaussian model."""

from tsi.targets.examples import (
    EXAMPLES,
    impossible_prefixes,
    peaked,
    smooth,
    unequal_lengths,
)
from tsi.targets.linear_gaussian import LinearGaussianTarget
from tsi.targets.tabular import TabularTarget

__all__ = [
    "EXAMPLES",
    "LinearGaussianTarget",
    "TabularTarget",
    "impossible_prefixes",
    "peaked",
    "smooth",
    "unequal_lengths",
]
