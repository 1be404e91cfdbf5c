"""Numbers that processes exchange if the devices of one mesh belong to several.

They travel through the devices, so all processes of the mesh must call these functions,
in the same order.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsi.errors import LostProcessError

MIN_BYTES = 256
"""Bytes of the shortest message; others are padded to powers of two."""
POLL_INTERVAL = 0.1
"""Seconds between two reads of the store."""

_meetings = itertools.count()
_waits: list[None] = []


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """A context in which this process may wait for the devices of another one."""
    _waits.append(None)
    try:
        yield
    finally:
        _waits.pop()


def is_waiting() -> bool:
    """Whether this process is within `waiting`."""
    return bool(_waits)


def largest(mesh: Mesh, *values: int) -> list[int]:
    """The largest of the values of all processes, each below 2 ** 31 in magnitude."""
    return [int(x) for x in _max_over_devices(mesh, np.asarray([values], np.int32))]


def least_bytes(mesh: Mesh, num_bytes: int) -> int:
    """The smallest number of bytes that a process has, in whole MiB."""
    return -largest(mesh, -(num_bytes >> 20))[0] << 20


def message_of_first(mesh: Mesh, message: bytes) -> bytes:
    """The message of the first process.

    Args:
        mesh: of all processes.
        message: of this process; empty in all but the first.
    """
    (size,) = largest(mesh, len(message))
    padded_size = max(MIN_BYTES, 1 << (size - 1).bit_length())
    own = np.zeros((1, padded_size), np.uint8)
    own[0, : len(message)] = np.frombuffer(message, np.uint8)
    return _max_over_devices(mesh, own).tobytes()[:size]


def is_first(mesh: Mesh) -> bool:
    """Whether this process has the first device of a mesh."""
    return mesh.devices.flat[0].process_index == jax.process_index()


def lost_process(error: Exception) -> LostProcessError:
    """The error of a process whose collective has failed."""
    line = (str(error).splitlines() or [""])[0] or repr(error)
    return LostProcessError(
        f"A process that has a part of the model has died or failed ({line}). What was "
        "written is kept: run the same command again."
    )


def _max_over_devices(mesh: Mesh, own: Any) -> Any:
    """The maximum of one row per process, on the host."""
    flat = Mesh(mesh.devices.reshape(-1), ("all",))
    with waiting():
        maximum = _maximum(flat)
        rows = jax.make_array_from_callback(
            (mesh.size, own.shape[1]),
            NamedSharding(flat, PartitionSpec("all")),
            lambda index: own,
        )
        try:
            return np.asarray(maximum(rows))
        except (RuntimeError, ValueError) as error:
            raise lost_process(error) from error


@functools.cache
def _maximum(mesh: Mesh) -> Any:
    """The compiled maximum over the devices of a mesh."""
    _meet(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda rows: jnp.max(rows, axis=0), out_shardings=whole)


def _meet(mesh: Mesh) -> None:
    """Wait for the other processes before the first collective of a mesh.

    One process may load its models minutes later than another, and the first collective
    waits for 30 seconds only. Signals are handled meanwhile.
    """
    # There is no public access to the store.
    from jax._src.distributed import global_state

    client: Any = global_state.client
    own = jax.process_index()
    processes = {device.process_index for device in mesh.devices.flat}
    folder = f"tsi/meeting/{min(processes)}/{next(_meetings)}"
    client.key_value_set(f"{folder}/{own}", "", allow_overwrite=True)
    while True:
        present = client.key_value_dir_get(f"{folder}/")
        if {int(key.rsplit("/", 1)[1]) for key, _ in present} >= processes:
            return
        time.sleep(POLL_INTERVAL)
