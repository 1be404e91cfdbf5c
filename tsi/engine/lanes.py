"""The groups of devices, each with its own problems.

Along a mesh's axis ``data``, groups have the same weights and share nothing else; no
cache is copied from one group to another. Along ``model``, a group divides weights and
heads (:mod:`tsi.models.partition`). If these devices belong to several processes, there
is one group, and :mod:`tsi.engine.agreement` keeps the processes at the same point.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tsi.errors import ConfigurationError
from tsi.models.partition import DATA, MODEL, spans_processes


def divide(mesh: Mesh | None) -> list[Mesh | None]:
    """One mesh with an axis ``model`` for each index along ``data``."""
    if mesh is None:
        return [None]
    names = list(mesh.axis_names)
    grid = mesh.devices
    if DATA not in names:
        grid, names = grid[None], [DATA, *names]
    grid = np.moveaxis(grid, names.index(DATA), 0)
    automatic = (AxisType.Auto,)
    rows = [np.reshape(row, -1) for row in grid]
    return [Mesh(row, (MODEL,), axis_types=automatic) for row in rows]


def check_processes(mesh: Mesh | None) -> None:
    """Check that each group has devices of this process.

    Raises:
        ConfigurationError: a mesh of several processes has several groups.
    """
    if not spans_processes(mesh):
        return
    num_groups = mesh.size // mesh.shape.get(MODEL, 1)
    if num_groups > 1:
        raise ConfigurationError(
            f"The mesh has {num_groups} groups of devices of several processes. "
            "Give each process the devices of its own group, with "
            "tsi.models.partition.make_mesh(1, MODEL, devices=...), and its own share "
            "of the problems."
        )


def part_of(tree: Any, part: Mesh | None) -> Any:
    """The weights of one group of devices, without a copy.

    Args:
        tree: pytree of arrays on a whole mesh, replicated over the groups.
        part: the group; None for unchanged arrays.
    """
    if part is None:
        return tree
    devices = set(part.devices.flat)

    def take_shards(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        shards = [s for s in leaf.addressable_shards if s.device in devices]
        pieces = [shard.data for shard in shards]
        if part.size == 1:
            return pieces[0]
        spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
        sharding = NamedSharding(part, PartitionSpec(*spec))
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, pieces)

    return jax.tree.map(take_shards, tree)
