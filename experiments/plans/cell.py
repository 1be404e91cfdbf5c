"""The cell of a plan: one run of one method on one problem, and the key of its row."""

from typing import NamedTuple


class Cell(NamedTuple):
    """The key of a row.

    Attributes:
        method: its name.
        budget: rollouts N.
        seed: 0, 1, ...
        problem: its id.
    """

    method: str
    budget: int
    seed: int
    problem: int | str
