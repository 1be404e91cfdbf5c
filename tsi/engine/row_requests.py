"""A method's requests in the rows of a lane.

A method numbers the prefixes of each problem from 0 (:class:`tsi.explorer.Request`).
The functions here translate its requests for some problems into rows of the lane.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.population import Population
from tsi.explorer import Request


class RowRequests(NamedTuple):
    """The requests for the working rows of some problems, along one axis.

    Attributes:
        rows: working rows, in order.
        parents: the row whose prefix each gets.
        limit: the maximum number of steps of the parent that are kept; None for all.
        extend: whether each takes a step.
        sources: the row whose next step each repeats, -1 for no repeat; None if no row
            repeats a step.
    """

    rows: Int[np.ndarray, " n"]
    parents: Int[np.ndarray, " n"]
    limit: Int[np.ndarray, " n"] | None
    extend: Bool[np.ndarray, " n"]
    sources: Int[np.ndarray, " n"] | None


def requests_of_rows(
    request: Request, is_requested: Bool[np.ndarray, " P"], population: Population
) -> RowRequests:
    """The requests for the working rows of some problems.

    Args:
        request: of every problem, [P, W] each.
        is_requested: the problems.
        population: of the lane.
    """
    places = np.flatnonzero(is_requested)[:, None]

    def flatten_rows(values: Any) -> Any:
        return np.asarray(values)[is_requested].reshape(-1)

    sources = None
    if request.sources is not None:
        numbers = np.asarray(request.sources)[is_requested]
        repeated = population.prefix_rows(places, numbers)
        sources = np.where(numbers >= 0, repeated, -1).reshape(-1)
    parents = population.prefix_rows(places, np.asarray(request.parents)[is_requested])
    return RowRequests(
        np.flatnonzero(np.repeat(is_requested, population.plan.rows)),
        parents.reshape(-1),
        None if request.depths is None else flatten_rows(request.depths),
        flatten_rows(request.extend),
        sources,
    )


def rows_to_keep(
    request: Request, ready: Bool[np.ndarray, " P"], population: Population
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Stored rows that are overwritten after a turn, and the working row of each.

    Args:
        request: of every problem, [P, W] each.
        ready: problems whose turn has ended.
        population: of the lane.
    """
    slots = np.asarray(request.slots)
    is_kept = ready[:, None] & (slots < population.plan.stored)
    places = np.arange(population.places)[:, None]
    return population.prefix_rows(places, slots)[is_kept], np.flatnonzero(is_kept)
