"""Programs without models: dense rows, and copies between them and blocks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import (
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from tsi.engine.meters.clock import Timed
from tsi.engine.paging import pages as paging
from tsi.engine.paging.pages import Dense, Pages
from tsi.models.partition import MODEL, parts_of_heads, put


@functools.lru_cache(maxsize=256)
def _zeros_program(shapes: tuple[Any, ...], sharding: Sharding) -> Any:
    """The compiled function that makes zeros of these shapes and types in shards."""
    return jax.jit(
        lambda: [jnp.zeros(shape, dtype) for shape, dtype in shapes],
        out_shardings=sharding,
    )


class PagePrograms:
    """Programs on the devices where some model's weights lie.

    Args:
        mesh: with an axis ``model`` over which heads are divided; None for one device.
    """

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self.home: Sharding | None = None
        donate = functools.partial(jax.jit, donate_argnums=0)
        self.page_out = Timed(donate(paging.page_out), "move")
        self.page_in = Timed(donate(paging.page_in), "move")
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._replicate = jax.jit(lambda leaf: leaf, out_shardings=whole)

    def make_zeros(self, like: Dense, rows: int, size: int) -> Dense:
        """Dense rows of zeros, placed where programs return dense rows."""

        def make() -> Dense:
            return Dense(
                tuple(
                    jnp.zeros((rows, *x.shape[1:3], size), x.dtype) for x in like.keys
                ),
                tuple(
                    jnp.zeros((rows, x.shape[1], size, x.shape[3]), x.dtype)
                    for x in like.values
                ),
            )

        return self._zeros(make, axis=1)

    def empty_pages(self, like: Dense, block: int, count: int) -> Pages:
        """Blocks of zeros, placed where programs return blocks."""
        return self._zeros(lambda: paging.empty_pages(like, block, count), axis=2)

    def _zeros(self, make: Callable[[], Any], axis: int) -> Any:
        """Zeros with heads along an axis, sharded like the weights that produce them.

        A program is compiled again for an argument with another sharding.

        Args:
            make: makes them on one device.
            axis: of the heads.
        """
        if self.mesh is None or self.mesh.size == 1:
            return self.place(make())
        leaves, structure = jax.tree.flatten(jax.eval_shape(make))
        heads = leaves[0].shape[axis]
        spec = PartitionSpec()
        if parts_of_heads(heads, self.mesh) > 1:
            spec = PartitionSpec(*[None] * axis, MODEL)
        # No device ever has the part of another one.
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        make_shards = _zeros_program(shapes, NamedSharding(self.mesh, spec))
        return jax.tree.unflatten(structure, make_shards())

    def place(self, tree: Any) -> Any:
        """Place arrays with the weights, if these are committed to devices.

        The results of programs are then committed as well, and a program is compiled
        again for an argument that is not.
        """
        return tree if self.home is None else put(tree, self.home)

    def set_home(self, weights: Any) -> None:
        """Record the sharding of weights, for `place`."""
        leaf = next(x for x in jax.tree.leaves(weights) if isinstance(x, jax.Array))
        whole = self.mesh is not None and self.mesh.size > 1
        if whole:
            assert self.mesh is not None
            self.home = NamedSharding(self.mesh, PartitionSpec())
        elif leaf.committed:
            self.home = SingleDeviceSharding(next(iter(leaf.devices())))

    def fetch(self, tree: Any) -> Any:
        """Values on the host, of arrays that may be divided among processes."""
        return jax.device_get(jax.tree.map(self._whole, tree))

    def _whole(self, leaf: Any) -> Any:
        is_on_host = not isinstance(leaf, jax.Array)
        if is_on_host or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return self._replicate(leaf)

    def divide(self, dense: Dense) -> Dense:
        """Divide heads along the axis ``model``, like the weights that produce them."""
        heads = dense.keys[0].shape[1]
        if self.mesh is None or parts_of_heads(heads, self.mesh) == 1:
            return dense
        sharding = NamedSharding(self.mesh, PartitionSpec(None, MODEL))
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, sharding), dense
        )
