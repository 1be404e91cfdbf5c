"""Ctrl-C and SIGTERM between two looks of the host, and never inside a program.

JAX turns an exception of a callback into an error of its own, or loses it, so a signal
that arrives while a reward's function runs would come out as something else.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tsi.errors import Stopped
from tsi.termination import is_main_thread, is_repetition, stop_at_once


class StopEvent(threading.Event):
    """Set when lanes are to stop.

    Attributes:
        number: of the signal that asked for it.
    """

    number: int = signal.SIGINT


@contextlib.contextmanager
def deferred_interrupts(stop: StopEvent) -> Iterator[None]:
    """While this lasts, a signal to stop sets `stop`, and a second interrupts at once.

    Those are Ctrl-C, and SIGTERM where `terminable` lasts. A handler that the user has
    set stays, and threads other than the main one change nothing.
    """
    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: stop_at_once}
    before = {
        number: handler
        for number, handler in ours.items()
        if is_main_thread() and signal.getsignal(number) is handler
    }

    def ask(number: int, frame: FrameType | None) -> None:
        if is_repetition():
            return
        if stop.is_set():
            raise Stopped(number)
        stop.number = number
        stop.set()

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Do something to its end, and stop then if a signal has asked for it meanwhile.

    Raises:
        Stopped: see above; a second signal interrupts at once.
    """
    stop = StopEvent()
    with deferred_interrupts(stop):
        yield
    if stop.is_set():
        raise Stopped(stop.number)
