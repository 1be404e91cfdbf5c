"""Errors that tsi raises on purpose: sentences with what, where and what to do."""

import signal
import traceback
import warnings
from collections.abc import Mapping
from typing import Any


class TsiError(Exception):
    """Base of all errors that tsi raises on purpose."""


class ConfigurationError(TsiError):
    """Arguments contradict each other or the method's needs."""


class UnknownNameError(TsiError):
    """A method, task or model name that does not exist; the message lists the known.

    Args:
        kind: what was looked up, for example ``"method"``.
        name: the name that was asked for.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: object) -> None:
        names = ", ".join(sorted(str(k) for k in known))  # type: ignore[attr-defined]
        super().__init__(f"There is no {kind} named {name!r}. Known: {names}.")
        self.kind, self.name = kind, name


class CheckpointError(TsiError):
    """A model file that is malformed, truncated or does not fit the architecture."""


class DownloadError(TsiError):
    """A published file that could not be fetched, or is not the one expected."""


class CapabilityError(TsiError):
    """A sampler needs an optional capability that the target does not have."""


class PromptTooLongError(TsiError):
    """A prompt that does not fit the cache or the model's context."""


class ProblemError(TsiError):
    """Some problems of a run failed; all others have ended well.

    Args:
        failures: the error of each problem, by its id.
        steps: at which step it came, from 1, where it did at a step.
        tracebacks: where each came from. They are text, since the errors' own
            tracebacks would keep all that the run had in memory.

    Attributes:
        failures, steps, tracebacks: as above.
        results: of the other problems, in order, where a list was asked for.
    """

    def __init__(
        self,
        failures: Mapping[Any, Exception],
        steps: Mapping[Any, int] | None = None,
        tracebacks: Mapping[Any, str] | None = None,
    ) -> None:
        self.failures, self.steps = dict(failures), dict(steps or {})
        self.tracebacks = dict(tracebacks or {})
        self.results: tuple[Any, ...] = ()
        shown = [
            f"{name!r} ({_shown(error)}{self._step(name)})"
            for name, error in list(failures.items())[:3]
        ]
        more = ", ..." if len(failures) > 3 else ""
        super().__init__(
            f"{len(failures)} problems failed: {', '.join(shown)}{more}. The results "
            "of the others are kept; mend what failed and run these again."
        )

    def _step(self, name: Any) -> str:
        return f" at step {self.steps[name]}" if name in self.steps else ""


def _shown(error: Exception) -> str:
    try:
        return repr(error)
    except Exception:
        # Of a class that nobody has foreseen; the others' results count more.
        return type(error).__name__


def detach(error: BaseException) -> str:
    """Take an error's traceback off, and those of its causes, and return it as text.

    The frames in it hold whatever was in memory.
    """
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = type(error).__name__
    left, seen = [error], set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        left += [x for x in (one.__cause__, one.__context__) if x is not None]
    return text


class Stopped(KeyboardInterrupt):
    """A signal has asked the program to stop; no error, so that nothing catches it.

    Args:
        number: of the signal.

    Attributes:
        results: of the problems that had ended, in order, where a list was asked for.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.results = number, ()  # type: tuple[int, tuple[Any, ...]]


class OutOfMemoryError(TsiError):
    """What is to be computed does not fit into memory, however little is at once."""


class MemoryWarning(UserWarning):
    """Memory has run out, and a run goes on with less at once."""


class RewardError(TsiError):
    """A reward that is not a number, or a reward model that cannot score."""


class InvalidWeightWarning(UserWarning):
    """Log potentials or corrections were NaN or +inf, and have no weight."""


def warn_of_invalid(count: int, subject: str) -> None:
    """Say once for a run how much of it had no weight because it was no number.

    Args:
        count: how many numbers; nothing is said of none.
        subject: what they were told of, the start of the sentence.
    """
    if count:
        warnings.warn(
            f"{subject} had {count} log potentials or corrections of NaN or +inf. Such "
            "a prefix has weight zero. If a reward hands out probabilities, which may "
            'be 1, give it scale="probability"; otherwise look for what is not finite.',
            InvalidWeightWarning,
            stacklevel=3,
        )


class ResultsError(TsiError):
    """A results file that cannot be continued or read."""


class AnswerError(TsiError):
    """A grader that failed, or an answer beyond the limits of time or size."""


class ProcessError(TsiError):
    """Another process of the run has failed."""


class LostProcessError(ProcessError):
    """Another process of the run has died; the same command goes on from there."""


class ConformanceError(TsiError):
    """A sampler that breaks a promise of the sampler contract."""
