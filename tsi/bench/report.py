"""What the bench found: promises that are kept, broken or skipped."""

from typing import NamedTuple

from tsi.bench.robustness import Check
from tsi.errors import ConformanceError


class Report(NamedTuple):
    """What `check_sampler` or `check_target` found.

    Attributes:
        checks: every promise that was looked at, in order.
        judged: what was looked at, for messages.
    """

    checks: tuple[Check, ...]
    judged: str = "sampler"

    @property
    def passed(self) -> bool:
        """Whether no promise was broken."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The promises that were broken."""
        judged = (check for check in self.checks if check.passed is not None)
        return tuple(check for check in judged if not check.passed)

    def raise_if_failed(self) -> None:
        """Raise `ConformanceError` with the broken promises, if there are any."""
        if not self.passed:
            lines = "; ".join(f"{c.promise}: {_told(c)}" for c in self.failures)
            raise ConformanceError(f"The {self.judged} breaks its contract. {lines}.")

    def __str__(self) -> str:
        words = {True: "kept", False: "BROKEN", None: "skipped"}
        width = max(len(check.promise) for check in self.checks)
        return "\n".join(
            f"{words[check.passed]:8}{check.promise:{width + 2}}{_told(check)}"
            for check in self.checks
        )


def _told(check: Check) -> str:
    return f"{check.detail} [{check.where}]" if check.where else check.detail
