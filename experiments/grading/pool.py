"""A pool of processes that grade untrusted answers within limits.

A model's answer can make a grader loop, use too much memory or end its process. So a
grader runs in a process that can be killed, unless it only matches bounded regular
expressions. An answer that cannot be graded within the limits counts as wrong, its
failure is recorded and counted, and the next answer is graded by a new process.
"""

import contextlib
import os
import queue
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from tsi.errors import AnswerError, UngradedAnswerWarning
from tsi.experiments.grading.grade import Grade
from tsi.experiments.grading.grader import Grader
from tsi.models.workers.limited_process import (
    LimitedProcess,
    ProcessEndedError,
    ProcessLateError,
    ProcessNotReadyError,
)
from tsi.models.workers.process_limits import Limits
from tsi.problem import Problem

WORKER = "tsi.experiments.grading.worker"
MAX_WORKERS = 4
WALL_FACTOR, WALL_SECONDS = 4.0, 5.0
"""A worker counts as hanging after ``WALL_FACTOR`` times the limit of processor time
plus ``WALL_SECONDS``."""
MAX_SHOWN = 40


class GradingPool:
    """Grades answers, each answer of a problem once.

    Args:
        grader: from :func:`tsi.experiments.grading.grader.get_grader`.
        seconds: of processor time that one grade may take.
        megabytes: of memory that one grade may take.
        num_workers: number of processes; by default one per CPU core, at most four.
        wall_seconds: after which a worker counts as hanging.

    The first failure of each kind is a warning, `UngradedAnswerWarning`.

    Attributes:
        failures: number of answers that could not be graded, by kind: "timeout",
            "crash", "too long", "error: NAME".
        examples: the first answer of each kind: problem id, answer and description.
    """

    def __init__(
        self,
        grader: Grader,
        *,
        seconds: float = 5.0,
        megabytes: int = 1024,
        num_workers: int | None = None,
        wall_seconds: float | None = None,
    ) -> None:
        self.grader, self.limits = grader, Limits(seconds, megabytes)
        self.wall_seconds = wall_seconds or WALL_FACTOR * seconds + WALL_SECONDS
        self.failures: Counter[str] = Counter()
        self.examples: dict[str, tuple[int | str, str, str]] = {}
        self._grades: dict[tuple[int | str, str], Grade] = {}
        self._workers: list[LimitedProcess] = []
        self._free: queue.SimpleQueue[LimitedProcess] = queue.SimpleQueue()
        self._executor: ThreadPoolExecutor | None = None
        if not grader.is_inline:
            self._start(num_workers or min(MAX_WORKERS, os.cpu_count() or 1))

    def _start(self, num_workers: int) -> None:
        names = [self.grader.function, self.grader.prepare]
        command = [sys.executable, "-m", WORKER, *map(str, self.limits)]
        command += [name for name in names if name is not None]
        # What can be imported here can be imported there.
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        self._executor = ThreadPoolExecutor(num_workers, "grading")
        for _ in range(num_workers):
            worker = LimitedProcess(command, {"PYTHONPATH": path})
            self._workers.append(worker)
            self._free.put(worker)
        self._executor.submit(_start_quietly, self._workers[0])

    def grade(self, pairs: Sequence[tuple[Problem, str | None]]) -> list[Grade]:
        """The grades of some answers, in their order; no answer makes this raise.

        Args:
            pairs: problems, and answers to them; None is wrong.

        Raises:
            AnswerError: the pool is closed.
        """
        waiting: dict[tuple[int | str, str], tuple[Problem, str]] = {}
        for problem, answer in pairs:
            if answer is None:
                continue
            key = problem.id, answer
            if key in self._grades or key in waiting:
                continue
            if self.grader.data:
                problem = problem._replace(data={**self.grader.data, **problem.data})
            grade, detail = self._grade_here(problem, answer)
            if grade is None:
                waiting[key] = problem, answer
            else:
                self._record(key, grade, detail)
        if waiting:
            for key, reply in zip(waiting, self._ask_all(waiting), strict=True):
                self._record(key, *reply)
        return [
            Grade(False) if answer is None else self._grades[problem.id, answer]
            for problem, answer in pairs
        ]

    def _grade_here(self, problem: Problem, answer: str) -> tuple[Grade | None, str]:
        """The grade, if it can be found in this process."""
        limit = self.grader.max_characters
        if len(answer) > limit:
            return Grade(False, "too long"), f"more than {limit:,} characters"
        if self.grader.shortcut is None:
            return None, ""
        try:
            correct = self.grader.shortcut(problem, answer)
        except Exception as error:
            return Grade(False, f"error: {type(error).__name__}"), str(error)
        return (None if correct is None else Grade(correct)), ""

    def _ask_all(
        self, waiting: dict[tuple[int | str, str], tuple[Problem, str]]
    ) -> list[tuple[Grade, str]]:
        assert self._executor is not None
        try:
            return list(self._executor.map(self._ask, waiting.values()))
        except (CancelledError, RuntimeError) as error:
            raise AnswerError(
                "The pool of graders was closed before all answers were graded."
            ) from error

    def _ask(self, pair: tuple[Problem, str]) -> tuple[Grade, str]:
        """The grade that a worker gives."""
        worker = self._free.get()
        try:
            grade, detail = self._ask_worker(worker, *pair)
            if grade.failure is not None:
                # An error amid a computation may leave a library in a state that makes
                # it grade the next answer wrong.
                worker.close()
        finally:
            self._free.put(worker)
        if grade.failure is not None:
            assert self._executor is not None
            with contextlib.suppress(RuntimeError):
                self._executor.submit(_start_quietly, worker)
        return grade, detail

    def _ask_worker(
        self, worker: LimitedProcess, problem: Problem, answer: str
    ) -> tuple[Grade, str]:
        try:
            correct, failure, detail = worker.ask([*problem, answer], self.wall_seconds)
            return Grade(correct, failure), detail
        except ProcessLateError:
            failure, detail = "timeout", f"no reply within {self.wall_seconds:g} s"
        except ProcessEndedError as error:
            is_timeout = error.returncode == -signal.SIGVTALRM
            failure = "timeout" if is_timeout else "crash"
            detail = f"the process ended with code {error.returncode}"
        except ProcessNotReadyError as error:
            failure, detail = "error: the grader did not start", str(error)
        except (TypeError, ValueError) as error:
            # Data of the problem that JSON cannot express.
            failure, detail = f"error: {type(error).__name__}", str(error)
        return Grade(False, failure), detail

    def _record(self, key: tuple[int | str, str], grade: Grade, detail: str) -> None:
        self._grades[key] = grade
        kind = grade.failure
        if kind is None:
            return
        self.failures[kind] += 1
        if kind not in self.examples:
            self.examples[kind] = *key, detail
            warnings.warn(
                f"An answer could not be graded by {self.grader.name!r} and counts as "
                f"wrong: {self._describe(kind)}. Further {kind!r} are counted.",
                UngradedAnswerWarning,
                stacklevel=3,
            )

    def summary(self) -> str | None:
        """A sentence that names the answers that could not be graded, if any."""
        if not self.failures:
            return None
        parts = [
            f"{number} {kind} (first: {self._describe(kind)})"
            for kind, number in self.failures.most_common()
        ]
        total = self.failures.total()
        return (
            f"Not graded by {self.grader.name!r} and counted as wrong: {total} in all, "
            f"{'; '.join(parts)}."
        )

    def _describe(self, kind: str) -> str:
        """The first answer of a kind of failure."""
        name, answer, detail = self.examples[kind]
        excerpt = answer if len(answer) <= MAX_SHOWN else answer[:MAX_SHOWN] + "…"
        because = f": {detail}" if detail else ""
        return f"problem {name!r}, {excerpt!r}, {kind}{because}"

    def close(self) -> None:
        """Kill all workers."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            # A worker that grades is not waited for.
            worker.kill()
            worker.close()

    def __enter__(self) -> "GradingPool":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _start_quietly(worker: LimitedProcess) -> None:
    """Start a worker ahead of its next answer, which will say if it fails."""
    with contextlib.suppress(ProcessNotReadyError):
        worker.start()
