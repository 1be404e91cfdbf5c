"""Processes of tests: started side by side, waited for no longer than so long."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

LONGEST = 240
"""Seconds after which a process counts as hanging; a busy machine needs many."""


class Processes:
    """All that a test has started, killed when it ends."""

    def __init__(self):
        self._started = []

    def start(self, command, **environment):
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            cwd=Path(__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def fakes(self, out, count, **settings):
        """Processes of `fake_process.py`; a list has a value for each."""
        address = f"127.0.0.1:{free_port()}"
        found = []
        for index in range(count):
            mine = {
                k: v[index] if isinstance(v, list) else v for k, v in settings.items()
            }
            arguments = {"out": str(out), "index": index, "count": count}
            arguments |= {"address": address, **mine}
            command = [sys.executable, "fake_process.py", json.dumps(arguments)]
            found.append(self.start(command))
        return found

    def close(self):
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


def ended(processes):
    """Exit codes and what was said on standard error."""
    until = time.monotonic() + LONGEST
    told = [p.communicate(timeout=until - time.monotonic())[1] for p in processes]
    return [p.returncode for p in processes], told


def wait_for(condition):
    """Until something is so; it is looked at often."""
    until = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
