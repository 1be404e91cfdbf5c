"""Limits of time and memory that a process sets itself for one piece of work.

Time is processor time, so that a busy machine accepts all that an idle one accepts.
"""

import contextlib
import resource
import signal
from collections.abc import Iterator
from typing import NamedTuple

KILL_FACTOR, KILL_SECONDS = 2.0, 0.5


class Limits(NamedTuple):
    """The resources that a piece of work may use.

    Attributes:
        seconds: of processor time.
        megabytes: of address space, in addition to what the process already has.
    """

    seconds: float
    megabytes: int


class TimeLimit(BaseException):
    """The time is up. Not an Exception, so that no library catches it."""


@contextlib.contextmanager
def enforce_limits(limits: Limits, extra_bytes: int = 0) -> Iterator[None]:
    """Run the block within limits.

    Python code is stopped by :class:`TimeLimit` and by MemoryError. Compiled code that
    runs on after the time is up is killed together with the process.

    Args:
        limits: of the block.
        extra_bytes: further address space, for a file that the block maps.
    """
    max_bytes = mapped_bytes() + limits.megabytes * 2**20 + extra_bytes
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        max_bytes = min(max_bytes, hard)
    signal.signal(signal.SIGPROF, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, hard))
    # The default action of the second timer's signal ends the process.
    signal.setitimer(signal.ITIMER_VIRTUAL, KILL_FACTOR * limits.seconds + KILL_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def mapped_bytes() -> int:
    """The address space of this process; 4 GiB if the system does not report it."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**32


def _stop(signum: int, frame: object) -> None:
    raise TimeLimit


class LimitExceeded(Exception):
    """Work was stopped at a limit; the message continues a sentence after "it"."""
