"""The time of a group of devices, divided into parts.

At each moment the clock is in exactly one part, so that the parts sum to the elapsed
time. JAX runs programs asynchronously, and the time of a program appears wherever the
host waits next. An exact clock therefore waits for every program, and assigns to a part
only the time between a program's call and its last result; all other time belongs to
the host. A clock that is not exact does not wait: its parts are phases of the host,
each of which ends by reading results of its programs.

Compilation happens within the call that needs it, on the calling thread. Its time, as
reported by JAX, is subtracted from the part in which it happens.
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
"""In order: reading prompts; copying rows between blocks and slots, and offloaded
weights to the device; drawing tokens;
reading steps by the reward; repeating steps; samplers and the rows that they request;
all other work of the host; compiling programs or reading them from disk; and idle
time."""

_here = threading.local()


class ClockReading(NamedTuple):
    """The reading of a clock.

    Attributes:
        seconds: of each part; they sum to the time that the clock has run.
        compiling: seconds of "compile", by the part that they interrupted.
    """

    seconds: dict[str, float]
    compiling: dict[str, float]


class Clock:
    """The clock of one lane; it starts in the part "host".

    Args:
        exact: whether programs are timed one by one; see the module docstring.
        now: seconds.
    """

    def __init__(
        self, exact: bool = False, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.exact, self._now = exact, now
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._compiling = dict.fromkeys(PARTS, 0.0)
        self._part, self._since = "host", now()
        # Disjoint intervals in which something was compiled since then.
        self._spans: list[tuple[float, float]] = []

    def switch(self, part: str) -> str:
        """End the current part, begin another, and return the previous one."""
        before, now = self._part, self._now()
        compiling = sum(end - start for start, end in self._spans)
        self._seconds["compile"] += compiling
        self._compiling[before] += compiling
        self._seconds[before] += now - self._since - compiling
        self._part, self._since, self._spans = part, now, []
        return before

    def phase(self, part: str) -> str:
        """As `switch`, for a phase of the host; an exact clock counts it as "host"."""
        return self.switch("host" if self.exact else part)

    def read(self) -> ClockReading:
        """The reading so far; may be called from another thread."""
        seconds, compiling = dict(self._seconds), dict(self._compiling)
        compile_seconds = sum(end - start for start, end in tuple(self._spans))
        seconds["compile"] += compile_seconds
        compiling[self._part] += compile_seconds
        seconds[self._part] += self._now() - self._since - compile_seconds
        return ClockReading(seconds, compiling)

    def resume(self) -> None:
        """Make this clock that of the calling thread, and switch to the part "host"."""
        _here.clock = self
        self.switch("host")

    def note_compilation(self, seconds: float) -> None:
        """Record a compilation that ends now and took `seconds`."""
        end = self._now()
        start = max(end - seconds, self._since)
        # JAX reports nested compilations before the outer one.
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        if self._spans:
            start = max(start, self._spans[-1][1])
        self._spans.append((start, end))


def tell_compilation(seconds: float) -> None:
    """Report a compilation to the clock of this thread, if there is one."""
    clock = getattr(_here, "clock", None)
    if clock is not None:
        clock.note_compilation(seconds)


class Timed:
    """A program whose time is charged to a part by the calling thread's exact clock.

    Args:
        program: compiled, or to be compiled.
        part: one of `PARTS`.
    """

    def __init__(self, program: Any, part: str) -> None:
        self.program, self.part = program, part

    def num_compiled(self) -> int:
        """Number of shapes for which it has been compiled."""
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
