"""Limits of time and memory that a process sets itself, for one piece of work.

Time is processor time, so that a busy machine refuses nothing that an idle one accepts.
"""

import contextlib
import resource
import signal
from collections.abc import Iterator
from typing import NamedTuple

KILL_FACTOR, KILL_SECONDS = 2.0, 0.5


class Limits(NamedTuple):
    """What a piece of work may take.

    Attributes:
        seconds: of processor time.
        megabytes: of address space, beyond what the process has.
    """

    seconds: float
    megabytes: int


class TimeLimit(BaseException):
    """The time is up. No Exception, so that no library takes it for a failure."""


@contextlib.contextmanager
def limited(limits: Limits, extra_bytes: int = 0) -> Iterator[None]:
    """Do what follows within limits.

    Python code is stopped by :class:`TimeLimit` and by MemoryError. Code of another
    language that runs on after the time is up is killed, and the process with it.

    Args:
        limits: of the work.
        extra_bytes: of a file that is going to be mapped.
    """
    allowed = mapped_bytes() + limits.megabytes * 2**20 + extra_bytes
    old, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    signal.signal(signal.SIGPROF, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    # The default action of the second timer's signal ends the process.
    signal.setitimer(signal.ITIMER_VIRTUAL, KILL_FACTOR * limits.seconds + KILL_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (old, hard))


def mapped_bytes() -> int:
    """The address space of this process; 4 GiB where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**32


def _stop(signum: int, frame: object) -> None:
    raise TimeLimit


class LimitExceeded(Exception):
    """Work was stopped; the message ends the sentence "it …"."""
