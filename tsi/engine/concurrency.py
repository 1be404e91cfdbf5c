"""Run lanes concurrently, one group of devices per thread.

The loop over the problems of a group of devices is a :class:`tsi.engine.lane.Lane`.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.sharding import Mesh

from tsi.engine.agreement import SharedStop
from tsi.engine.ended_problems import EndedProblem, FailedProblem
from tsi.engine.interruption import StopEvent, defer_interrupts, innermost_stop
from tsi.errors import Stopped
from tsi.models.partition import spans_processes

Run = Callable[[Any], Iterator[EndedProblem | FailedProblem]]


def run_concurrently(
    runs: Sequence[Run],
    mesh: Mesh | None = None,
    fingerprint: Callable[[], int] = lambda: 0,
) -> Iterator[EndedProblem | FailedProblem]:
    """The ended problems of several lanes, in the order in which they end.

    Args:
        runs: functions that each start one lane, which stops soon after its event is
            set.
        mesh: the devices; if they belong to several processes, there is one lane, and
            all of these processes stop together.
        fingerprint: see :class:`tsi.engine.agreement.SharedStop`.

    Raises:
        Stopped: Ctrl-C was typed, or SIGTERM came; all lanes have stopped.
    """
    if spans_processes(mesh):
        yield from _run_together(runs[0], mesh, fingerprint)
        return
    stop = StopEvent()
    ended_problems = runs[0](stop) if len(runs) == 1 else _merge(runs, stop)
    try:
        while True:
            with defer_interrupts(stop):
                ended_problem = next(ended_problems, None)
            if ended_problem is None:
                break
            yield ended_problem
            if stop.is_set():
                break
        if stop.is_set():
            raise Stopped(stop.number)
    finally:
        stop.set()
        ended_problems.close()  # type: ignore[attr-defined]


def _run_together(
    run: Run, mesh: Mesh, fingerprint: Callable[[], int]
) -> Iterator[EndedProblem | FailedProblem]:
    """Run a lane that other processes run as well, and stop when they do.

    Signals are also held while the caller uses a problem, since an exception there
    would end this process only.
    """
    stop = innermost_stop()
    shared = SharedStop(stop, mesh, fingerprint)
    ended_problems: Any = run(shared)
    with defer_interrupts(stop), contextlib.closing(ended_problems):
        yield from ended_problems
        if shared.is_set() or stop.is_set():
            raise Stopped(stop.number)


def _merge(
    runs: Sequence[Run], stop: threading.Event
) -> Iterator[EndedProblem | FailedProblem]:
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work(run: Run) -> None:
        try:
            for ended_problem in run(stop):
                items.put(ended_problem)
            items.put(None)
        except BaseException as error:
            items.put(error)

    threads = [threading.Thread(target=work, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    try:
        num_running = len(threads)
        while num_running:
            item = items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    except BaseException:
        # After a failure the other lanes stop after their current burst.
        stop.set()
        raise
    finally:
        for thread in threads:
            thread.join()
