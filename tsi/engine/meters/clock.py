"""Where the time of a group of devices goes: at each moment it is in exactly one part.

So the parts sum to the time that has passed, whatever is nested in what. JAX computes
behind the host's back, and a host that does not wait for a program finds the time of it
wherever it waits next. An exact clock therefore lets the host wait for every program,
and charges to a part only what lies between a program's call and its last result;
everything else is the host's. A clock that is not exact disturbs nothing: its parts are
the host's phases, each of which ends by reading what its programs have computed.

Compilation happens inside of the call that needs it, on the thread that calls. It is
taken out of the part that it happens in, as JAX tells of it.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PARTS = (
    "prefill",
    "move",
    "decode",
    "reward",
    "repeat",
    "decide",
    "host",
    "compile",
    "idle",
)
"""Prompts read; rows copied between blocks and slots; tokens written; steps read by the
reward; steps repeated; samplers and the rows that they ask for; all else that the host
does; programs compiled, or read from disk; and nothing to do."""

_here = threading.local()


class ClockReading(NamedTuple):
    """What a clock shows.

    Attributes:
        seconds: of each part; they sum to the time that the clock has run.
        compiling: seconds of "compile", by the part that they interrupted.
    """

    seconds: dict[str, float]
    compiling: dict[str, float]


class Clock:
    """The time of one lane; it begins in the part "host".

    Args:
        exact: whether programs are timed one by one, see the module's text.
        now: seconds.
    """

    def __init__(
        self, exact: bool = False, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.exact, self._now = exact, now
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._compiling = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "host", now()
        # Times in which something was compiled since then, none within another.
        self._spans: list[tuple[float, float]] = []

    def switch(self, part: str) -> str:
        """End the part that runs, begin another, and return the one before."""
        before, now = self._part, self._now()
        compiling = sum(end - start for start, end in self._spans)
        self._seconds["compile"] += compiling
        self._compiling[before] += compiling
        self._seconds[before] += now - self._since - compiling
        self._part, self._since, self._spans = part, now, []
        return before

    def phase(self, part: str) -> str:
        """As `switch`, for a phase of the host, which in an exact clock is "host"."""
        return self.switch("host" if self.exact else part)

    def read(self) -> ClockReading:
        """What has been spent so far; another thread may ask."""
        seconds, compiling = dict(self._seconds), dict(self._compiling)
        spent = sum(end - start for start, end in tuple(self._spans))
        seconds["compile"] += spent
        compiling[self._part] += spent
        seconds[self._part] += self._now() - self._since - spent
        return ClockReading(seconds, compiling)

    def resume(self) -> None:
        """Compilations and programs of this thread are this clock's; the host works."""
        _here.clock = self
        self.switch("host")

    def note_compilation(self, seconds: float) -> None:
        """Something has been compiled until now, and took so long."""
        end = self._now()
        start = max(end - seconds, self._since)
        # What is compiled within something else is told first.
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        if self._spans:
            start = max(start, self._spans[-1][1])
        self._spans.append((start, end))


def tell_compilation(seconds: float) -> None:
    """Tell the clock of this thread, if there is one, of something compiled."""
    clock = getattr(_here, "clock", None)
    if clock is not None:
        clock.note_compilation(seconds)


class Timed:
    """A program whose time an exact clock of the calling thread charges to a part.

    Args:
        program: compiled, or to be compiled.
        part: one of `PARTS`.
    """

    def __init__(self, program: Any, part: str) -> None:
        self.program, self.part = program, part

    def num_compiled(self) -> int:
        """For how many shapes it has been compiled."""
        return self.program._cache_size()

    def __call__(self, *arguments: Any) -> Any:
        """Call the program."""
        clock = getattr(_here, "clock", None)
        if clock is None or not clock.exact:
            return self.program(*arguments)
        before = clock.switch(self.part)
        with jax.profiler.TraceAnnotation(self.part):
            result = jax.block_until_ready(self.program(*arguments))
        clock.switch(before)
        return result
