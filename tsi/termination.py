"""SIGTERM as an exception, for programs that are asked to make way for others."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tsi.errors import Stopped


class Request:
    """What has asked this program to stop.

    Attributes:
        signals: that have come since `terminable` began.
        by_group: whether one of them told that another process of the run stops.
    """

    signals: int = 0
    by_group: bool = False


_request = Request()


def is_repetition() -> bool:
    """Count a signal, and say whether it asks for what `stop_with_group` has asked.

    A scheduler signals all processes of a run, some later than others, and the first
    that stops makes the others stop. Both are one request, not a first signal and a
    second, which would end the program at once.
    """
    _request.signals += 1
    return _request.by_group and _request.signals == 2


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """A handler of signals that raises `Stopped`."""
    if not is_repetition():
        raise Stopped(number)


def stop_with_group() -> None:
    """As if SIGTERM had come, unless a signal has; the main thread stops.

    Where nothing handles SIGTERM, nothing happens.
    """
    thread = threading.main_thread().ident
    handled = signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    if thread is not None and handled and not is_asked():
        _request.by_group = True
        signal.pthread_kill(thread, signal.SIGTERM)


def is_asked() -> bool:
    """Whether a signal has asked this program to stop."""
    return _request.signals > 0


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While this lasts, SIGTERM raises `Stopped` as Ctrl-C raises KeyboardInterrupt.

    A handler that the user has set stays, and threads other than the main one, which
    get no signals, change nothing.
    """
    if is_main_thread():
        _request.signals, _request.by_group = 0, False
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
