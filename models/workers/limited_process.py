"""A child process that answers requests and can be stopped.

Libraries that work on a model's files may take any time and memory. In a separate
process they can be stopped by ending the process. Requests and replies are lines of
JSON, so nothing is unpickled.
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
    """The process ended instead of replying.

    Args:
        returncode: of the process, -N if signal N ended it; None if it is not known.
    """

    def __init__(self, returncode: int | None = None) -> None:
        super().__init__(returncode)
        self.returncode = returncode


class ProcessNotReadyError(Exception):
    """The process did not start; the message is its output."""


class LimitedProcess:
    """A child process that handles one request at a time.

    It is started by the first request.

    Args:
        command: that starts it. It must write :data:`READY` once it has started.
        environment: variables set in addition to those of this process.
        discards_stderr: whether its standard error is dropped.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        discards_stderr: bool = False,
    ) -> None:
        self.command, self.discards_stderr = list(command), discards_stderr
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def ask(self, question: Any, seconds: float) -> Any:
        """The reply to a request.

        Args:
            question: of JSON types.
            seconds: of wall-clock time that the reply may take.

        Raises:
            ProcessLateError: it took longer; the process is stopped.
            ProcessEndedError: the process ended without a reply.
            ProcessNotReadyError: it did not start.
        """
        request = json.dumps(question).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                process = self._running_process()
                if _send(process, request):
                    break
                # It ended while idle, perhaps for lack of memory: try once more.
                self._stop()
            else:
                raise ProcessEndedError
            try:
                return _receive(process, seconds)
            except BaseException:
                # A late reply would be taken for the reply to the next request.
                self._stop()
                raise

    def start(self) -> None:
        """Start the process, if there is none, ahead of the next request.

        Raises:
            ProcessNotReadyError: it did not start.
        """
        with self._lock:
            self._running_process()

    def close(self) -> None:
        """Stop the process, if there is one; the next request starts another."""
        with self._lock:
            self._stop()

    def kill(self) -> None:
        """Kill the process; a request amid work raises ProcessEndedError."""
        process = self.process
        if process is not None and self._owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _stop(self) -> None:
        process, self.process = self.process, None
        # After a fork the process belongs to the parent.
        if process is None or self._owner != os.getpid():
            return
        # The whole process group, because the process may have children.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _running_process(self) -> "subprocess.Popen[bytes]":
        is_owner = self._owner == os.getpid()
        if is_owner and self.process is not None and self.process.poll() is None:
            return self.process
        self._stop()
        self._owner = os.getpid()
        self.process = process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if self.discards_stderr else None,
            env=os.environ | self.environment,
            start_new_session=True,
            bufsize=0,
        )
        try:
            reply = _receive(process, START_SECONDS)
        except (ProcessLateError, ProcessEndedError):
            reply = None
        if reply != READY:
            self._stop()
            raise ProcessNotReadyError(str(reply or "no reply"))
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
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([process.stdout], [], [], remaining)[0]:
            raise ProcessLateError
        part = os.read(process.stdout.fileno(), 65_536)
        if not part:
            raise ProcessEndedError(process.wait())
        line += part
    return json.loads(line)
