"""What processes agree on when one model is divided over the devices of several.

Each of these processes runs the same lane on the same problems, so that they call the
same programs in the same order. Every decision of a lane follows from numbers that are
the same in all of them, with these exceptions: a signal, free memory
(:mod:`tsi.engine.sizing.memory`), and what a function of the user returns. For these
the processes exchange numbers (:mod:`tsi.models.exchange`). Before each round of its
loop, they also compare a fingerprint of their decisions.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from tsi.engine.interruption import StopEvent, hold_signals
from tsi.errors import ProcessError, RewardError, Stopped, TsiError
from tsi.models.exchange import is_first, largest, message_of_first, waiting
from tsi.models.partition import spans_processes
from tsi.termination import record_stop_of_group
from tsi.weights import weight_dtype

Scores = tuple[Float[np.ndarray, " R"], dict[int, Exception]]
"""Log-odds of rows, and the errors of rows that could not be scored, by row."""
T = TypeVar("T")


class SharedStop:
    """An event that is set in all processes of a model, as soon as it is set in one.

    Args:
        stop: of this process.
        mesh: the devices of the model.
        fingerprint: function that returns a hash of this process's decisions, below
            2 ** 31.
    """

    def __init__(
        self, stop: StopEvent, mesh: Mesh, fingerprint: Callable[[], int] = lambda: 0
    ) -> None:
        self._stop, self._mesh, self._fingerprint = stop, mesh, fingerprint

    def is_set(self) -> bool:
        """Whether any process is to stop; all processes must ask.

        Raises:
            ProcessError: the processes have made different decisions.
        """
        own = self._stop.number if self._stop.is_set() else 0
        decisions = self._fingerprint()
        number, top, bottom = largest(self._mesh, own, decisions, -decisions)
        if top != -bottom:
            raise ProcessError(
                "The processes that hold this model have made different decisions, so "
                "the run cannot continue. They need the same kind of hardware, the "
                "same software, and prompts that do not depend on the host, such as on "
                "its date. What was written before is kept."
            )
        if number and not self._stop.is_set():
            self._stop.number = number
            record_stop_of_group()
            self._stop.set()
        return number > 0


@contextlib.contextmanager
def stop_together(mesh: Mesh | None) -> Iterator[Callable[[], None]]:
    """A context in which the processes of a model stop at the same point.

    Args:
        mesh: the devices of the model.

    Yields:
        A function that raises `Stopped` if a signal has come to any of the processes,
        all of which must call it.
    """
    if not spans_processes(mesh):
        yield lambda: None
        return
    with hold_signals() as stop:
        shared = SharedStop(stop, mesh)

        def check() -> None:
            if shared.is_set():
                raise Stopped(stop.number)

        yield check
        # A signal may have come after the last agreement.
        if stop.is_set():
            raise Stopped(stop.number)


def scores_of_first(mesh: Mesh | None, score: Callable[[], Scores]) -> Scores:
    """Scores that the first process of a mesh computes for all.

    The user's function may depend on time or on a file, so the other processes do not
    call it.

    Args:
        mesh: the devices of the model.
        score: scores rows.
    """
    if not spans_processes(mesh):
        return score()
    if is_first(mesh):
        log_odds, errors = score()
        _send(mesh, [log_odds.tolist(), {i: _name(x) for i, x in errors.items()}])
        return log_odds, errors
    numbers, texts = _receive(mesh)
    errors = {int(i): RewardError(text) for i, text in texts.items()}
    return np.asarray(numbers, weight_dtype()), errors


def answers_of_first(
    mesh: Mesh | None, extract: Callable[[], list[str | None]]
) -> list[str | None]:
    """Answers that the first process of a mesh extracts for all, or its error."""
    if not spans_processes(mesh):
        return extract()
    if is_first(mesh):
        try:
            answers = extract()
        except Exception as error:
            _send(mesh, [[], _name(error)])
            raise
        _send(mesh, [answers, ""])
        return answers
    answers, failure = _receive(mesh)
    if failure:
        raise TsiError(failure)
    return answers


def _send(mesh: Mesh, content: Any) -> None:
    message_of_first(mesh, json.dumps(content).encode())


def _receive(mesh: Mesh) -> Any:
    return json.loads(message_of_first(mesh, b""))


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def count_as_waiting(items: Iterator[T], mesh: Mesh | None) -> Iterator[T]:
    """The same items, each computed within :func:`tsi.models.exchange.waiting`."""
    if not spans_processes(mesh):
        yield from items
        return
    end = object()
    while True:
        with waiting():
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]
