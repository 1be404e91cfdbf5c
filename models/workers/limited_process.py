"""A process that answers questions, and can be stopped where it does not.

What a model or its files make a library do may take any time and memory: it is done in
a process of its own, whose end ends it. Questions and replies are lines of JSON, so
that nothing is pickled.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

START_SECONDS = 120.0
READY = "ready"


class ProcessLateError(Exception):
    """No reply came in time; the process is stopped."""


class ProcessEndedError(Exception):
    """The process ended instead of replying."""


class ProcessNotReadyError(Exception):
    """The process did not start; the message is what it said."""


class LimitedProcess:
    """A child process of one question at a time, started when it is first asked.

    Args:
        command: its arguments. It says :data:`READY` once it has started.
        environment: variables to set besides those of this process.
        quiet: whether what it writes to standard error is dropped.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        quiet: bool = False,
    ) -> None:
        self.command, self.quiet = list(command), quiet
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def ask(self, question: Any, seconds: float) -> Any:
        """The reply to a question.

        Args:
            question: of JSON types.
            seconds: that the reply may take, by the clock on the wall.

        Raises:
            ProcessLateError: it took longer; the process is stopped.
            ProcessEndedError: the process ended instead.
            ProcessNotReadyError: it did not start.
        """
        request = json.dumps(question).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                process = self._running_process()
                if _send(process, request):
                    break
                # It ended while idle, say for lack of memory elsewhere: once more.
                self._stop()
            else:
                raise ProcessEndedError
            try:
                return _receive(process, seconds)
            except BaseException:
                # A reply that comes later would be taken for that of the next question.
                self._stop()
                raise

    def close(self) -> None:
        """Stop the process, if there is one; the next question starts another."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process, self.process = self.process, None
        # After a fork the process is that of the parent.
        if process is None or self._owner != os.getpid():
            return
        # The whole group: it may have children of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _running_process(self) -> "subprocess.Popen[bytes]":
        mine = self._owner == os.getpid()
        if mine and self.process is not None and self.process.poll() is None:
            return self.process
        self._stop()
        self._owner = os.getpid()
        self.process = process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self.quiet else None,
            env=os.environ | self.environment,
            start_new_session=True,
            bufsize=0,
        )
        try:
            said = _receive(process, START_SECONDS)
        except (ProcessLateError, ProcessEndedError):
            said = None
        if said != READY:
            self._stop()
            raise ProcessNotReadyError(str(said or "no reply"))
        return process


def _send(process: "subprocess.Popen[bytes]", request: bytes) -> bool:
    assert process.stdin is not None
    rest = memoryview(request)
    try:
        while rest:
            rest = rest[process.stdin.write(rest) :]
    except BrokenPipeError:
        return False
    return True


def _receive(process: "subprocess.Popen[bytes]", seconds: float) -> Any:
    """One line of JSON."""
    assert process.stdout is not None
    deadline, line = time.monotonic() + seconds, bytearray()
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise ProcessLateError
        part = os.read(process.stdout.fileno(), 65_536)
        if not part:
            process.wait()
            raise ProcessEndedError
        line += part
    return json.loads(line)
