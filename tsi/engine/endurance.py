"""A lane that continues with smaller sizes after memory has run out."""

import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence

from tsi.engine.ended_problems import EndedProblem, FailedProblem
from tsi.engine.lane import Lane
from tsi.engine.meters.report import Report, total
from tsi.engine.sizing.sizes import Sizes, half_of
from tsi.errors import MemoryWarning, OutOfMemoryError, TsiError
from tsi.models.exchange import lost_process

LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED")
"""What a failed collective says."""
JAX_ERRORS = "JaxRuntimeError", "XlaRuntimeError"
"""Names of the errors of JAX's programs, by version."""


class Endurance:
    """Runs the problems of one group of devices with sizes that fit into memory.

    A program that runs out of memory has already donated its arrays, so the unfinished
    problems cannot continue. They start again with half as many slots and problems. The
    samples are the same, since random numbers do not depend on these sizes.

    Args:
        lane_of: function from sizes to a lane, the loop over problems.
        sizes: of the first lane.
        problems: indices of the problems.
        report_progress: function called after each burst.
        of_several_processes: whether the devices belong to several processes. These
            cannot start again together, so the run ends.
    """

    def __init__(
        self,
        lane_of: Callable[[Sizes], Lane],
        sizes: Sizes,
        problems: Sequence[int],
        report_progress: Callable[[], None],
        *,
        of_several_processes: bool = False,
    ) -> None:
        self._of_several_processes = of_several_processes
        self._lane_of, self.sizes, self._user_function = lane_of, sizes, report_progress
        self._user_error: Exception | None = None
        self._remaining = list(problems)
        self._lane: Lane | None = None
        self._reports: list[Report] = []

    def report(self) -> Report:
        """The report of all lanes so far, which ran one after the other."""
        reports = self._all_reports()
        # Lanes run one after the other, so their memory is not summed.
        cache = max((r.cache for r in reports), key=lambda c: c.num_bytes, default=None)
        sums = total(reports)
        return sums if cache is None else sums._replace(cache=cache)

    def _all_reports(self) -> list[Report]:
        now = [] if self._lane is None else [self._lane.report()]
        return [*self._reports, *now]

    @property
    def num_written(self) -> int:
        """Number of tokens drawn so far, lost ones included."""
        return sum(report.useful for report in self._all_reports())

    def fingerprint(self) -> int:
        """A hash of what the lane has decided so far; 0 without a lane."""
        return 0 if self._lane is None else self._lane.fingerprint()

    @property
    def user_error(self) -> Exception | None:
        """The error that the user's function has raised, or None."""
        return self._user_error

    def end(self) -> None:
        """Free the caches, without waiting for a collection of garbage."""
        self._reports, self._lane = self._all_reports(), None

    def switch_to_idle(self) -> None:
        """Count the time as idle until the next problem is requested."""
        if self._lane is not None:
            self._lane.clock.switch("idle")

    def run(self, stop: threading.Event) -> Iterator[EndedProblem | FailedProblem]:
        """Run all problems; yield each as soon as it has ended.

        A problem fails with an `OutOfMemoryError` if it does not fit even by itself,
        with one slot.
        """
        while self._remaining and not stop.is_set():
            failure = ""
            try:
                self._lane = lane = self._lane_of(self.sizes)
                lane.clock.resume()
                for ended_problem in lane.run(
                    list(self._remaining), stop, self._report_progress
                ):
                    self._remaining.remove(ended_problem.problem)
                    yield ended_problem
                    lane.clock.resume()
                lane.clock.switch("idle")
            except Exception as error:
                if (
                    self._of_several_processes
                    or error is self._user_error
                    or not is_out_of_memory(error)
                ):
                    raise
                # A MemoryError may have no text.
                failure = (str(error).splitlines() or [""])[0] or repr(error)
            if not failure:
                return
            # Outside the exception handler: its traceback keeps the lane's arrays
            # alive.
            self._reports, self._lane = self._all_reports(), None
            lane = None  # type: ignore[assignment]
            smaller_sizes = half_of(self.sizes)
            if self.sizes.slots == self.sizes.problems == 1:
                # The others may need less memory.
                lack = OutOfMemoryError(
                    "Memory ran out with one problem and one slot at once "
                    f"({failure}). Lower N, max_tokens or the models' size."
                )
                yield FailedProblem(self._remaining.pop(0), lack)
                continue
            warnings.warn(
                f"Memory ran out with {self.sizes.slots} slots and "
                f"{self.sizes.problems} problems at once ({failure}); continuing with "
                f"{smaller_sizes.slots} and {smaller_sizes.problems}. No result is "
                "lost or changed. Give the engine a smaller max_rows.",
                MemoryWarning,
                stacklevel=2,
            )
            self.sizes = smaller_sizes

    def _report_progress(self) -> None:
        """Call the user's function; its own lack of memory is not that of the lane."""
        try:
            self._user_function()
        except Exception as error:
            self._user_error = error
            raise


def failure_of_processes(error: Exception) -> TsiError | None:
    """Why processes cannot continue that hold one model together.

    Args:
        error: of a program; None is returned for others.
    """
    line = (str(error).splitlines() or [""])[0] or repr(error)
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"Memory ran out ({line}), and a model that is divided over several "
            "processes cannot continue with smaller batches. Lower --max-rows, and run "
            "the same command again."
        )
    # A collective that fails at once is a ValueError with the name of a status.
    is_of_program = type(error).__name__ in JAX_ERRORS or isinstance(error, ValueError)
    if is_of_program and LOST.search(line):
        return lost_process(error)
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no memory left."""
    return isinstance(error, MemoryError) or (
        type(error).__name__ in JAX_ERRORS and "RESOURCE_EXHAUSTED" in str(error)
    )
