"""Grading of untrusted text, with limits of time, length and memory.

A model's answer can make a grader loop or eat memory. `GradingWorker` runs the grader
in a process of its own: a grade that is late is the grade "wrong, timed out", the
process is killed and the next grade gets a fresh one. Graders that only compare
strings declare themselves `inline` and run here.

A grader is named "module:function" and takes a `Problem` and an answer; the worker
imports it by name, so nothing is pickled.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tsi.answers import MAX_ANSWER
from tsi.errors import AnswerError
from tsi.problem import Problem

START_SECONDS = 120.0


class Grade(NamedTuple):
    """A verdict.

    Args:
        correct: whether the answer is right; False if the grader did not end.
        failure: None, or "timeout", "too long", "crash", "error: ...".
    """

    correct: bool
    failure: str | None = None


class GradingWorker:
    """A grader in a process that can be killed.

    Args:
        grader: "module:function"; called with (Problem, answer), returns a bool.
        seconds: limit for one grade, wall clock.
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
        self._process: subprocess.Popen[bytes] | None = None

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        """Grade one answer; never raises for anything the answer does."""
        if answer is None:
            return Grade(False)
        if len(answer) > MAX_ANSWER:
            return Grade(False, "too long")
        request = json.dumps([*problem, answer]).encode() + b"\n"
        for _ in range(2):
            process = self._started()
            if self._send(process, request):
                break
            # The worker died idle, say for lack of memory elsewhere: once more.
            self.close()
        else:
            return Grade(False, "crash")
        reply = self._receive(process, self.seconds)
        if reply is None:
            timed_out = process.poll() is None
            self.close()
            self.num_timeouts += timed_out
            return Grade(False, "timeout" if timed_out else "crash")
        return Grade(*reply)

    def close(self) -> None:
        """Kill the process, if there is one; the next grade starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        # The whole group: a grader may have children of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> "GradingWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", __name__, self.grader, str(self.megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        ready = self._receive(process, START_SECONDS)
        if ready != "ready":
            self.close()
            raise AnswerError(
                f"The grader {self.grader!r} did not start: {ready or 'no reply'}. It "
                "must name a function as module:function."
            )
        return process

    @staticmethod
    def _send(process: "subprocess.Popen[bytes]", request: bytes) -> bool:
        assert process.stdin is not None
        try:
            process.stdin.write(request)
        except BrokenPipeError:
            return False
        return True

    @staticmethod
    def _receive(process: "subprocess.Popen[bytes]", seconds: float) -> Any:
        """One line of JSON, or None if it does not come in time."""
        assert process.stdout is not None
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            part = os.read(process.stdout.fileno(), 4096)
            if not part:
                process.wait()
                return None
            line += part
        return json.loads(line)


def serve(grader: str, megabytes: int) -> None:
    """The worker's loop: a line of JSON in, a line of JSON out."""
    # A grader that prints must not write into the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        function = _imported(grader)
    except (ImportError, AttributeError, ValueError) as error:
        reply(repr(error))
        return
    # After the imports: libraries map far more than they use.
    limit = megabytes * 2**20 + _mapped_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    reply("ready")
    for line in sys.stdin:
        *fields, answer = json.loads(line)
        try:
            reply([bool(function(Problem(*fields), answer)), None])
        except Exception as error:  # whatever untrusted text makes a grader raise
            reply([False, f"error: {type(error).__name__}"])


def _imported(grader: str) -> Callable[[Problem, str], bool]:
    module, _, name = grader.partition(":")
    function = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    return function  # type: ignore[return-value]


def _mapped_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 2**32


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
