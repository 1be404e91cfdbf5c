"""SIGTERM as an exception, for programs that a scheduler may stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from tsi.errors import Stopped


class Request:
    """The requests to stop this program.

    Attributes:
        signals: number of signals since `raise_on_sigterm` began.
        by_group: whether one of them means that another process of the run is stopping.
        depth: number of contexts of `raise_on_sigterm` that are open.
    """

    signals: int = 0
    by_group: bool = False
    depth: int = 0


_request = Request()


def is_repetition() -> bool:
    """Count a signal; return whether it repeats the request of `stop_with_group`.

    A scheduler signals all processes of a run, some later than others, and the first
    process that stops also stops the others. A process may thus receive the same
    request twice. This must not count as two signals, since a second signal ends the
    program immediately.
    """
    _request.signals += 1
    return _request.by_group and _request.signals == 2


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """Signal handler that raises `Stopped`."""
    if not is_repetition():
        raise Stopped(number)


def stop_with_group() -> None:
    """Send SIGTERM to the main thread, unless a signal has arrived already.

    Does nothing if SIGTERM has no handler.
    """
    thread = threading.main_thread().ident
    handled = signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
    if thread is not None and handled and not is_stop_requested():
        _request.by_group = True
        signal.pthread_kill(thread, signal.SIGTERM)


def record_stop_of_group() -> None:
    """Record that this program stops since another process of the run was asked to.

    Its own request may follow, and does not count as a second one.
    """
    if _request.depth and not is_stop_requested():
        _request.signals, _request.by_group = 1, True


def is_stop_requested() -> bool:
    """Whether a signal has asked this program to stop."""
    return _request.signals > 0


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises `Stopped`, as Ctrl-C raises KeyboardInterrupt.

    A handler that the user has set is kept. In threads other than the main one, which
    receive no signals, the context does nothing.
    """
    if not is_main_thread():
        yield
        return
    if _request.depth == 0:
        # Ctrl-C in an earlier run of this program is no request to stop this one.
        _forget_requests()
    _request.depth += 1
    before = signal.getsignal(signal.SIGTERM)
    is_ours = before is signal.SIG_DFL
    if is_ours:
        signal.signal(signal.SIGTERM, stop_at_once)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, before)
        _request.depth -= 1
        if _request.depth == 0:
            _forget_requests()


def _forget_requests() -> None:
    _request.signals, _request.by_group = 0, False


def is_main_thread() -> bool:
    """Whether this is the thread that receives signals."""
    return threading.current_thread() is threading.main_thread()
