"""The report of the bench: promises that are kept, broken or skipped."""

from typing import NamedTuple

from tsi.bench.robustness import Check
from tsi.errors import ConformanceError


class Report(NamedTuple):
    """The result of `check_sampler` or `check_target`.

    Attributes:
        checks: every promise that was tested, in order.
        subject: "sampler" or "target", for messages.
    """

    checks: tuple[Check, ...]
    subject: str = "sampler"

    @property
    def passed(self) -> bool:
        """Whether no promise was broken."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The promises that were broken."""
        return tuple(check for check in self.checks if check.passed is False)

    def raise_if_failed(self) -> None:
        """Raise `ConformanceError` with the broken promises, if there are any."""
        if not self.passed:
            lines = "; ".join(f"{c.promise}: {_describe(c)}" for c in self.failures)
            raise ConformanceError(f"The {self.subject} breaks its contract. {lines}.")

    def __str__(self) -> str:
        words = {True: "kept", False: "BROKEN", None: "skipped"}
        width = max(len(check.promise) for check in self.checks)
        return "\n".join(
            f"{words[check.passed]:8}{check.promise:{width + 2}}{_describe(check)}"
            for check in self.checks
        )


def _describe(check: Check) -> str:
    return f"{check.detail} [{check.where}]" if check.where else check.detail
