"""Errors that tsi raises: each message says what was wrong, where, and what to do."""

import signal
import traceback
import warnings
from collections.abc import Mapping
from typing import Any


class TsiError(Exception):
    """Base of all errors that tsi raises."""


class ConfigurationError(TsiError):
    """Arguments that contradict each other or the requirements of a method."""


class UnknownNameError(TsiError):
    """A name that does not exist; the message lists the names that do.

    Args:
        kind: what was looked up, for example ``"method"``.
        name: the unknown name.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: object) -> None:
        names = ", ".join(sorted(str(k) for k in known))  # type: ignore[attr-defined]
        super().__init__(f"There is no {kind} named {name!r}. Known: {names}.")
        self.kind, self.name = kind, name


class CheckpointError(TsiError):
    """A model file that is malformed, truncated or does not fit the architecture."""


class DownloadError(TsiError):
    """A published file that could not be downloaded, or has a wrong checksum."""


class ServerError(TsiError):
    """An inference server that cannot be reached, refuses, or sends invalid data."""


class CapabilityError(TsiError):
    """A sampler needs an optional capability that the target does not have."""


class PromptTooLongError(TsiError):
    """A prompt that does not fit the cache or the model's context."""


class ProblemError(TsiError):
    """Some problems of a run failed, and all others ended.

    Args:
        failures: the error of each failed problem, by its id.
        steps: the step of each error, counted from 1, if it occurred at a step.
        tracebacks: the traceback of each error, as text. The traceback objects would
            keep everything that the run had in memory.

    Attributes:
        failures, steps, tracebacks: as above.
        results: results of the other problems, in order, if the caller requested a
            list.
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
        listed = [
            f"{name!r} ({_describe(error)}{self._step(name)})"
            for name, error in list(failures.items())[:3]
        ]
        more = ", ..." if len(failures) > 3 else ""
        noun = "problem" if len(failures) == 1 else "problems"
        super().__init__(
            f"{len(failures)} {noun} failed: {', '.join(listed)}{more}. The results "
            "of the others are kept. Fix the cause and run the failed ones again."
        )

    def join(self, other: "ProblemError") -> "ProblemError":
        """One error for the failed problems of both, without results."""
        return ProblemError(
            self.failures | other.failures,
            self.steps | other.steps,
            self.tracebacks | other.tracebacks,
        )

    def _step(self, name: Any) -> str:
        return f" at step {self.steps[name]}" if name in self.steps else ""


def _describe(error: Exception) -> str:
    try:
        return repr(error)
    except Exception:
        # A class whose repr fails must not lose the results of the other problems.
        return type(error).__name__


def detach(error: BaseException) -> str:
    """Remove the traceback of an error and of its causes, and return it as text.

    Frames of a traceback keep their local variables in memory.
    """
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = type(error).__name__
    pending, seen_ids = [error], set()
    while pending:
        one = pending.pop()
        if id(one) in seen_ids:
            continue
        seen_ids.add(id(one))
        one.__traceback__ = None
        pending += [x for x in (one.__cause__, one.__context__) if x is not None]
    return text


class Stopped(KeyboardInterrupt):
    """A signal has asked the program to stop.

    A KeyboardInterrupt, so that handlers of errors do not catch it.

    Args:
        number: number of the signal.

    Attributes:
        results: results of the problems that had ended, in order, if the caller
            requested a list.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.results = number, ()  # type: tuple[int, tuple[Any, ...]]


class OutOfMemoryError(TsiError):
    """The smallest possible batch does not fit into memory."""


class MemoryWarning(UserWarning):
    """Memory ran out, and the run continues with smaller batches."""


class PolicyError(TsiError):
    """A policy whose probabilities are not numbers."""


class RewardError(TsiError):
    """A reward that is not a number, or a reward model that cannot score."""


class UngradedAnswerWarning(UserWarning):
    """A grader failed on an answer, which counts as wrong."""


class InvalidWeightWarning(UserWarning):
    """Log potentials or corrections were NaN or +inf, and count as weight zero."""


def warn_of_invalid(count: int, subject: str) -> None:
    """Warn once per run of log potentials or corrections that were NaN or +inf.

    Args:
        count: number of invalid values; zero gives no warning.
        subject: subject of the warning's sentence: what had invalid values.
    """
    if count:
        warnings.warn(
            f"{subject} had {count} log potentials or corrections of NaN or +inf. Such "
            "a prefix has weight zero. If a reward returns probabilities, which may be "
            '1, give it scale="probability". Otherwise find out what is not finite.',
            InvalidWeightWarning,
            stacklevel=3,
        )


class ResultsError(TsiError):
    """A results file that cannot be continued or read."""


class AnswerError(TsiError):
    """A grader that failed, or an answer beyond its limits of time or size."""


class ProcessError(TsiError):
    """Another process of the run has failed."""


class LostProcessError(ProcessError):
    """Another process of the run has died; the same command resumes the run."""


class ConformanceError(TsiError):
    """A sampler that breaks a promise of the sampler contract."""
