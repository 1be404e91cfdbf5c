"""One run of an engine: lanes in parallel, and a result as each problem ends.

A lane (:mod:`tsi.engine.lane`) runs the problems of one group of devices.
"""

import functools
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from tsi.engine.agreement import answers_of_first
from tsi.engine.concurrency import run_concurrently
from tsi.engine.ended_problems import EndedProblem, FailedProblem
from tsi.engine.endurance import Endurance, failure_of_processes
from tsi.engine.lane import Lane
from tsi.engine.meters.compilation import compilations
from tsi.engine.meters.report import Progress, Report, report_of_groups, total
from tsi.engine.outcomes import Outcomes
from tsi.engine.sizing.memory import peak_bytes
from tsi.engine.sizing.sizes import Sizes
from tsi.errors import ProblemError, Stopped, detach, warn_of_invalid
from tsi.models.partition import spans_processes
from tsi.problem import Problem
from tsi.results.result import Result


class Failures:
    """The problems of a run that failed, with the step and the traceback of each."""

    def __init__(self) -> None:
        self.errors: dict[Any, Exception] = {}
        self.steps: dict[Any, int] = {}
        self.tracebacks: dict[Any, str] = {}

    def add(self, id: Any, error: Exception, step: int | None = None) -> None:
        """Record a problem's error, and the step, counted from 1, if it was in one."""
        self.errors[id] = error
        self.tracebacks[id] = detach(error)
        if step is not None:
            self.steps[id] = step

    def check(self) -> None:
        """Raise one error for all of them.

        Raises:
            ProblemError: some problem failed.
        """
        if self.errors:
            raise ProblemError(self.errors, self.steps, self.tracebacks)


class EngineRun:
    """Divides the problems of a run among lanes, and makes their results.

    Args:
        problems: of the run, at least one.
        lane_of: function of `(group, sizes)` that makes the lane of a group of devices.
        num_groups: number of groups of devices.
        sizes: sizes of the first lane of each group.
        outcomes: makes results.
        prompt_lengths: tokens of each prompt, as the policy and as the reward reads it.
        progress: called each time the host reads the state of the slots, or None.
        mesh: devices of all groups, or None.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        lane_of: Callable[[int, Sizes], Lane],
        num_groups: int,
        sizes: Sizes,
        outcomes: Outcomes,
        prompt_lengths: tuple[Any, Any],
        progress: Callable[[Progress], None] | None,
        mesh: Mesh | None = None,
    ) -> None:
        self.problems, self.outcomes = problems, outcomes
        self.num_groups, self.prompt_lengths = num_groups, prompt_lengths
        self.progress, self.failures = progress, Failures()
        self._mesh = mesh
        self._lanes = [
            Endurance(
                functools.partial(lane_of, group),
                sizes,
                range(len(problems))[group::num_groups],
                self._report_progress,
                of_several_processes=spans_processes(mesh),
            )
            for group in range(min(num_groups, len(problems)))
        ]
        self._invalid: list[Result] = []
        self._num_ended = self._tokens_read = 0
        self._start_time = self._last_time = 0.0
        self._compilations = compilations()

    def results(self, record: Callable[[], None]) -> Iterator[Result]:
        """Run all problems, and yield each result as its problem ends.

        Args:
            record: called when a problem has ended or failed, before its result.

        Raises:
            ProblemError: some problems failed; raised after all others have ended.
        """
        self._start_time = self._last_time = time.perf_counter()
        self._compilations = compilations()
        for ended_problem in self._run_lanes():
            self._num_ended += 1
            if isinstance(ended_problem, FailedProblem):
                id = self.problems[ended_problem.problem].id
                self.failures.add(id, ended_problem.error, ended_problem.step)
                result = None
            else:
                result = self._result(ended_problem)
            record()
            if result is None:
                continue
            if len(self._lanes) == 1:
                self._lanes[0].switch_to_idle()
            yield result
        # The warning is reported at the caller's line.
        number = sum(result.diagnostics.num_invalid for result in self._invalid)
        warn_of_invalid(number, self._names_of_invalid())
        self.failures.check()

    def _run_lanes(self) -> Iterator[EndedProblem | FailedProblem]:
        """Run the lanes; explain why processes of one model cannot continue."""
        try:
            yield from run_concurrently(
                [x.run for x in self._lanes], self._mesh, self._lanes[0].fingerprint
            )
        except Exception as error:
            is_own = error is not self._lanes[0].user_error
            is_shared = is_own and spans_processes(self._mesh)
            reason = failure_of_processes(error) if is_shared else None
            if reason is None:
                raise
            raise reason from error

    def end(self) -> None:
        """Free the memory of all groups of devices."""
        for lane in self._lanes:
            lane.end()

    def report(self, devices: Sequence[jax.Device | None]) -> Report:
        """What has been done so far, on these devices."""
        compiled = compilations().since(self._compilations)
        wall = time.perf_counter() - self._start_time
        lanes = total(lane.report() for lane in self._lanes)
        return report_of_groups(lanes, wall, self.num_groups)._replace(
            programs=compiled.programs,
            compile_seconds=compiled.seconds,
            read=self._tokens_read,
            peak_bytes=max(peak_bytes(device) for device in devices),
        )

    def _result(self, ended_problem: EndedProblem) -> Result | None:
        """The result of a problem; None if a user's function fails on it."""
        problem, at = self.problems[ended_problem.problem], ended_problem.problem
        policy, reward = self.prompt_lengths
        lengths = int(policy[at]), int(reward[at])
        now = time.perf_counter()
        seconds, self._last_time = now - self._last_time, now
        try:
            solutions = self.outcomes.read(
                ended_problem.particles,
                functools.partial(answers_of_first, self._mesh),
            )
            result = self.outcomes.result(
                problem, ended_problem, solutions, seconds, lengths
            )
        except Exception as error:
            # The user's functions may fail on an unexpected text, or return what is
            # not an answer.
            self.failures.add(problem.id, error)
            return None
        if result.diagnostics.num_invalid:
            self._invalid.append(result)
        self._tokens_read += result.ledger.reward_tokens
        return result

    def _report_progress(self) -> None:
        """Call the user's function with the progress."""
        if self.progress is not None:
            num_written = sum(lane.num_written for lane in self._lanes)
            seconds = time.perf_counter() - self._start_time
            num_ended, problems = self._num_ended, len(self.problems)
            self.progress(Progress(num_ended, problems, num_written, seconds))

    def _names_of_invalid(self) -> str:
        """How a warning names the problems that had invalid weights."""
        results = self._invalid
        names = ", ".join(str(result.problem_id) for result in results[:5])
        more = ", ..." if len(results) > 5 else ""
        return f"{len(results)} problems of this run ({names}{more})"


def collect(
    stream: Iterable[Result], problems: Sequence[Problem], start_time: float | None
) -> list[Result]:
    """All results of a stream, in the order of the problems.

    Args:
        stream: results as the problems end.
        problems: of the run.
        start_time: when the run was requested, by ``time.perf_counter()``. The problems
            ran together, so each gets an equal share of the time since then. None
            leaves the seconds as they are.

    Raises:
        ProblemError: as the stream does; it has the results of the other problems.
        Stopped: after a signal; it has the results of problems that had ended.
    """
    failure: ProblemError | Stopped | None = None
    results: list[Result] = []
    try:
        results.extend(stream)
    except (ProblemError, Stopped) as error:
        failure = error
    except KeyboardInterrupt:
        failure = Stopped(signal.SIGINT)
    if start_time is not None:
        share = (time.perf_counter() - start_time) / max(1, len(results))
        results = [result.with_seconds(share) for result in results]
    by_id = {result.problem_id: result for result in results}
    if failure is not None:
        finished_ids = [problem.id for problem in problems if problem.id in by_id]
        failure.results = tuple(by_id[id] for id in finished_ids)
        raise failure
    return [by_id[problem.id] for problem in problems]
