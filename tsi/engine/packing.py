"""A tree of small arrays as one array per type, for one transfer each to the host.

The numbers of a decision are about ten arrays of a few hundred bytes. To fetch each
takes longer than to copy all of them into one array on the device.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped


class Layout(NamedTuple):
    """Where the leaves of a tree lie.

    Attributes:
        structure: of the tree.
        leaves: type and shape of each leaf.
    """

    structure: Any
    leaves: tuple[tuple[str, tuple[int, ...]], ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["layout"]
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A tree as one flat array per type.

    Attributes:
        arrays: the leaves of each type, one after the other.
        layout: of the tree.
    """

    arrays: dict[str, Shaped[Array, "n"]]
    layout: Layout


def pack(tree: Any) -> Packed:
    """Pack a tree, within a program."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [jnp.asarray(leaf) for leaf in leaves]
    by_type: dict[str, list[Array]] = {}
    for array in arrays:
        by_type.setdefault(str(array.dtype), []).append(array.ravel())
    return Packed(
        {dtype: jnp.concatenate(parts) for dtype, parts in by_type.items()},
        Layout(structure, tuple((str(a.dtype), a.shape) for a in arrays)),
    )


def unpack(packed: Packed) -> Any:
    """The tree, on the host; its leaves are views that cannot be written to."""
    host = jax.device_get(packed.arrays)
    starts = dict.fromkeys(host, 0)
    leaves = []
    for dtype, shape in packed.layout.leaves:
        start = starts[dtype]
        starts[dtype] = start + math.prod(shape)
        leaves.append(host[dtype][start : starts[dtype]].reshape(shape))
    return jax.tree.unflatten(packed.layout.structure, leaves)
