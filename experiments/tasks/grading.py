"""Grading of untrusted text, with limits of time, length and memory.

A model's answer can make a grader loop or use too much memory. `GradingWorker` runs the
grader in a separate process. If it exceeds the time limit, the answer is wrong, the
process is killed, and the next grade starts a new one. Tasks whose graders only compare
strings are `inline`: their graders run in this process.

A grader is named "module:function" and takes a `Problem` and an answer; the worker
imports it by name, so nothing is pickled.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from tsi.errors import AnswerError
from tsi.models.workers.limited_process import (
    READY,
    LimitedProcess,
    ProcessEndedError,
    ProcessLateError,
    ProcessNotReadyError,
)
from tsi.models.workers.process_limits import mapped_bytes
from tsi.problem import Problem
from tsi.results.answers import MAX_ANSWER


class Grade(NamedTuple):
    """The grade of an answer.

    Args:
        correct: whether the answer is right; False if the grader did not finish.
        failure: None, or "timeout", "too long", "crash", "error: ...".
    """

    correct: bool
    failure: str | None = None


class GradingWorker:
    """A grader in a separate process that can be killed.

    Args:
        grader: "module:function"; called with (Problem, answer), returns a bool.
        seconds: wall-clock limit for one grade.
        megabytes: limit of the worker's address space.

    Raises:
        AnswerError: the grader cannot be imported (at the first grade).
    """

    def __init__(
        self,
        grader: str,
        *,
        seconds: float = 5.0,
        megabytes: int = 2048,
    ) -> None:
        self.grader, self.seconds, self.megabytes = grader, seconds, megabytes
        self.num_timeouts = 0
        command = [sys.executable, "-m", __name__, grader, str(megabytes)]
        self._process = LimitedProcess(command)

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        """Grade one answer; no answer makes this raise."""
        if answer is None:
            return Grade(False)
        if len(answer) > MAX_ANSWER:
            return Grade(False, "too long")
        try:
            return Grade(*self._process.ask([*problem, answer], self.seconds))
        except ProcessLateError:
            self.num_timeouts += 1
            return Grade(False, "timeout")
        except ProcessEndedError:
            return Grade(False, "crash")
        except ProcessNotReadyError as error:
            raise AnswerError(
                f"The grader {self.grader!r} did not start: {error}. It must name a "
                "function as module:function."
            ) from None

    def close(self) -> None:
        """Kill the process, if there is one; the next grade starts a new one."""
        self._process.close()

    def __enter__(self) -> "GradingWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(grader: str, megabytes: int) -> None:
    """The loop of the process: reads and writes one line of JSON per answer."""
    # What a grader prints must not get into the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        function = _import_grader(grader)
    except (ImportError, AttributeError, ValueError) as error:
        reply(repr(error))
        return
    # After the imports, because libraries map more memory than they use.
    limit = megabytes * 2**20 + mapped_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    reply(READY)
    for line in sys.stdin:
        *fields, answer = json.loads(line)
        try:
            reply([bool(function(Problem(*fields), answer)), None])
        except Exception as error:  # untrusted text can cause any error
            reply([False, f"error: {type(error).__name__}"])


def _import_grader(grader: str) -> Callable[[Problem, str], bool]:
    module, _, name = grader.partition(":")
    function = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    return function  # type: ignore[return-value]


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
