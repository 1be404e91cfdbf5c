"""Handle Ctrl-C and SIGTERM between two programs, never inside one.

JAX turns an exception of a callback into a different error, or loses it, so a signal
that arrives while a reward function runs would be reported as another error.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tsi.errors import Stopped
from tsi.termination import is_main_thread, is_repetition, stop_at_once


class StopEvent(threading.Event):
    """An event that is set when lanes must stop.

    Attributes:
        number: number of the signal that set it.
    """

    number: int = signal.SIGINT


@contextlib.contextmanager
def defer_interrupts(stop: StopEvent) -> Iterator[None]:
    """A context where a first signal sets `stop` and a second interrupts immediately.

    The signals are Ctrl-C, and SIGTERM within `raise_on_sigterm`. A handler that the
    user has set is kept. In threads other than the main one the context does nothing.
    """
    default_handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: stop_at_once,
    }
    replaced_handlers = {
        number: handler
        for number, handler in default_handlers.items()
        if is_main_thread() and signal.getsignal(number) is handler
    }

    def handle(number: int, frame: FrameType | None) -> None:
        if is_repetition():
            return
        if stop.is_set():
            raise Stopped(number)
        stop.number = number
        stop.set()

    for number in replaced_handlers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in replaced_handlers.items():
            signal.signal(number, handler)


_stops: list[StopEvent] = []


@contextlib.contextmanager
def hold_signals() -> Iterator[StopEvent]:
    """A context where a first signal only sets an event, which runs in it use."""
    stop = StopEvent()
    with defer_interrupts(stop):
        _stops.append(stop)
        try:
            yield stop
        finally:
            _stops.pop()


def innermost_stop() -> StopEvent:
    """The event of the innermost `hold_signals`, or a new one."""
    return _stops[-1] if _stops else StopEvent()


@contextlib.contextmanager
def delay_signals() -> Iterator[None]:
    """A context that delays signals until its end.

    Raises:
        Stopped: a signal came; a second signal interrupts immediately.
    """
    stop = StopEvent()
    with defer_interrupts(stop):
        yield
    if stop.is_set():
        raise Stopped(stop.number)
