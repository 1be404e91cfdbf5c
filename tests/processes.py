"""Processes of tests: started side by side, waited for no longer than so long."""

import contextlib
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
SLURMS_PORTS = 61440
"""From here on JAX chooses the coordinator's port under Slurm."""


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

    def fakes(self, out, count, *, slurm=False, **settings):
        """Processes of `fake_process.py`; a list has a value for each.

        Args:
            slurm: tell them of each other only by Slurm's variables.
        """
        port = free_port(SLURMS_PORTS if slurm else 0)
        address = None if slurm else f"127.0.0.1:{port}"
        found = []
        for index in range(count):
            mine = {
                k: v[index] if isinstance(v, list) else v for k, v in settings.items()
            }
            arguments = {"out": str(out), "index": index, "count": count}
            arguments |= {"address": address, **mine}
            command = [sys.executable, "fake_process.py", json.dumps(arguments)]
            told = slurms_variables(index, count, port) if slurm else {}
            found.append(self.start(command, **told))
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


def slurms_variables(index, count, port):
    """What Slurm tells a task; JAX makes the port from the job's number."""
    return {
        "SLURM_JOB_ID": str(port - SLURMS_PORTS),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def free_port(least=0):
    """A port that nobody uses, at least so large."""
    with socket.socket() as found:
        for port in range(least, least + 4096) if least else [0]:
            with contextlib.suppress(OSError):
                found.bind(("127.0.0.1", port))
                return found.getsockname()[1]
    raise OSError("no port is free")
