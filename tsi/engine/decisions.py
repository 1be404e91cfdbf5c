"""The decisions of one method: its states, requests and diagnostics for P problems.

Every problem has its own turn, and a place, the index of its data in the arrays of a
lane. The two programs of :mod:`tsi.engine.methods` run for all places; places that do
not take part keep their state.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from tsi.engine.methods import Method, enter
from tsi.engine.packing import unpack
from tsi.explorer import Reply, Request
from tsi.problem_ids import IdWords


class Decisions:
    """The states and requests of a method for each problem.

    Attributes:
        turns: number of decisions of each problem, [P].
        key_steps: the key of each problem's steps, [P].
        state: of the sampler, with a leading axis of places.
        request: the newest request of each problem, on the host, [P, W] each.

    Args:
        method: the programs of the sampler or explorer.
        key: of the run.
        places: P.
    """

    def __init__(self, method: Method, key: Any, places: int) -> None:
        self.method, self.key = method, key
        self.turns = np.zeros(places, np.int32)
        self.key_steps: Any = None
        self.state: Any = None
        self.request: Any = None
        # Of all places at the turns of each; each takes its own when it ends.
        self._infos: list[list[Any]] = [[] for _ in range(places)]

    def begin(self, ids: IdWords, entered: Bool[np.ndarray, " P"]) -> None:
        """Begin with the problems that have entered.

        Args:
            ids: id of the problem at each place; any id at an empty place.
            entered: places of the problems that begin.
        """
        self.turns[entered] = 0
        initial_states = self.method.begin(self.key, ids)
        if self.state is None:
            self.key_steps, self.state = initial_states[:2]
        else:
            self.key_steps, self.state = enter(
                initial_states[:2], (self.key_steps, self.state), entered
            )
        self._receive(jax.device_get(initial_states[2]), entered)

    def decide(
        self, ready: Bool[np.ndarray, " P"], reply: Reply
    ) -> Bool[np.ndarray, " P"]:
        """Run `tell` and `ask` for the problems that are ready; return which continue.

        Args:
            ready: problems for which all steps have been read.
            reply: the numbers of all working rows, [P, W] each.
        """
        parents = np.asarray(self.request.parents)
        self.state, numbers = self.method.turn(
            self.key_steps, self.turns, self.state, ready, parents, reply
        )
        request, info, continues = unpack(numbers)
        for place in np.flatnonzero(ready):
            self._infos[place].append(info)
        self.turns += ready
        continues = ready & continues
        self._receive(request, continues)
        return continues

    def results(self, places: Int[np.ndarray, " n"]) -> list[tuple[Any, Any]]:
        """The states of problems on the host, and their infos stacked by turn."""
        state = jax.device_get(self.state)
        return [
            (
                jax.tree.map(lambda leaf, p=place: leaf[p], state),
                jax.tree.map(
                    lambda *leaves, p=place: np.stack([leaf[p] for leaf in leaves]),
                    *self._infos[place],
                ),
            )
            for place in places
        ]

    def leave(self, places: Int[np.ndarray, " n"]) -> None:
        """Delete the infos of problems."""
        for place in places:
            self._infos[place] = []

    def _receive(self, request: Request, is_requested: Bool[np.ndarray, " P"]) -> None:
        """Replace the requests of some problems and keep those of the others."""
        if self.request is None:
            self.request = jax.tree.map(np.array, request)
            return
        for old, new in zip(
            jax.tree.leaves(self.request), jax.tree.leaves(request), strict=True
        ):
            old[is_requested] = new[is_requested]
