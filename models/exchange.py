"""Numbers that processes exchange if the devices of one mesh belong to several.

They travel through the devices, so all processes of the mesh must call these functions,
in the same order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MIN_BYTES = 256
"""Bytes of the shortest message; others are padded to powers of two."""


def largest(mesh: Mesh, value: int) -> int:
    """The largest of the values of all processes, which are below 2 ** 31."""
    return int(_max_over_devices(mesh, np.asarray([[value]], np.int32))[0])


def message_of_first(mesh: Mesh, message: bytes) -> bytes:
    """The message of the first process.

    Args:
        mesh: of all processes.
        message: of this process; empty in all but the first.
    """
    size = largest(mesh, len(message))
    padded_size = max(MIN_BYTES, 1 << (size - 1).bit_length())
    own = np.zeros((1, padded_size), np.uint8)
    own[0, : len(message)] = np.frombuffer(message, np.uint8)
    return _max_over_devices(mesh, own).tobytes()[:size]


def is_first(mesh: Mesh) -> bool:
    """Whether this process has the first device of a mesh."""
    return mesh.devices.flat[0].process_index == jax.process_index()


def _max_over_devices(mesh: Mesh, own: Any) -> Any:
    """The maximum of one row per process, on the host."""
    flat = Mesh(mesh.devices.reshape(-1), ("all",))
    rows = jax.make_array_from_callback(
        (mesh.size, own.shape[1]),
        NamedSharding(flat, PartitionSpec("all")),
        lambda index: own,
    )
    return np.asarray(_maximum(flat)(rows))


@functools.cache
def _maximum(mesh: Mesh) -> Any:
    """The compiled maximum over the devices of a mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda rows: jnp.max(rows, axis=0), out_shardings=whole)
