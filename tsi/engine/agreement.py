"""What processes agree on when one model is divided over the devices of several.

Each of these processes runs the same lane on the same problems, so that they call the
same programs in the same order. Every decision of a lane follows from numbers that are
the same in all of them, with three exceptions: a signal, free memory
(:mod:`tsi.engine.sizing.planning`), and what a function of the user returns. For these
the processes exchange numbers (:mod:`tsi.models.exchange`).
"""

import json
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from tsi.engine.interruption import StopEvent
from tsi.errors import RewardError
from tsi.models.exchange import is_first, largest, message_of_first
from tsi.models.partition import spans_processes
from tsi.weights import weight_dtype

Scores = tuple[Float[np.ndarray, " R"], dict[int, Exception]]
"""Log-odds of rows, and the errors of rows that could not be scored, by row."""


class SharedStop:
    """An event that is set in all processes of a model, as soon as it is set in one.

    Args:
        stop: of this process.
        mesh: the devices of the model.
    """

    def __init__(self, stop: StopEvent, mesh: Mesh) -> None:
        self._stop, self._mesh = stop, mesh

    def is_set(self) -> bool:
        """Whether any process is to stop; all processes must ask."""
        own = self._stop.number if self._stop.is_set() else 0
        number = largest(self._mesh, own)
        if number and not self._stop.is_set():
            self._stop.number = number
            self._stop.set()
        return number > 0


def scores_of_first(mesh: Mesh | None, score: Callable[[], Scores]) -> Scores:
    """Scores that the first process of a mesh computes for all.

    The user's function may depend on time or on a file, so the other processes do not
    call it.

    Args:
        mesh: the devices of the model.
        score: scores rows.
    """
    if mesh is None or not spans_processes(mesh):
        return score()
    if is_first(mesh):
        log_odds, errors = score()
        texts = {i: f"{type(error).__name__}: {error}" for i, error in errors.items()}
        message_of_first(mesh, json.dumps([log_odds.tolist(), texts]).encode())
        return log_odds, errors
    numbers, texts = json.loads(message_of_first(mesh, b""))
    errors = {int(i): RewardError(text) for i, text in texts.items()}
    return np.asarray(numbers, weight_dtype()), errors
