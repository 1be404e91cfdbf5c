"""Errors that tsi raises on purpose: sentences with what, where and what to do."""

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

    Attributes:
        failures: as above.
        results: of the other problems, in order, where a list was asked for.
    """

    def __init__(self, failures: Mapping[Any, Exception]) -> None:
        shown = [f"{name!r} ({error!r})" for name, error in failures.items()]
        more = ", ..." if len(shown) > 3 else ""
        super().__init__(
            f"{len(shown)} problems failed: {', '.join(shown[:3])}{more}. The results "
            "of the others are kept; mend what failed and run these again."
        )
        self.failures = dict(failures)
        self.results: tuple[Any, ...] = ()


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


class ConformanceError(TsiError):
    """A sampler that breaks a promise of the sampler contract."""
