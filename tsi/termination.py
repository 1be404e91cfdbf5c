"""SIGTERM as an exception, for programs that are asked to make way for others."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tsi.errors import Stopped


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """A handler of signals that raises `Stopped`."""
    raise Stopped(number)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While this lasts, SIGTERM raises `Stopped` as Ctrl-C raises KeyboardInterrupt.

    A handler that the user has set stays, and threads other than the main one, which
    get no signals, change nothing.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not is_main_thread() or before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_main_thread() -> bool:
    """Whether this is the thread that gets signals."""
    return threading.current_thread() is threading.main_thread()
