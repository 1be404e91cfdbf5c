"""Ctrl-C between two looks of the host, and never inside a program.

JAX turns an exception of a callback into an error of its own, or loses it, so Ctrl-C
that arrives while a reward's function runs would come out as something else.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deferred_interrupts(stop: threading.Event) -> Iterator[None]:
    """While this lasts, Ctrl-C sets `stop`, and a second Ctrl-C interrupts at once.

    A handler that the user has set stays, and threads other than the main one, which
    get no signals, change nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not main or before is not signal.default_int_handler:
        yield
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
