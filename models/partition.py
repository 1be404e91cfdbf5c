"""How a mesh divides arrays: rows along ``data``, weights and heads along ``model``.

Attention heads, the feed-forward width and the vocabulary are divided along ``model``.
The compiler sums the product that follows over that axis (tensor parallelism, Shoeybi
et al. 2019, arXiv 1909.08053). A weight is whole on every device if its heads, width or
vocabulary do not divide evenly. The biases of the attention's output and of the
feed-forward layer's output are whole too, because they are added after the sum. Along
``data`` all weights are replicated.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from tsi.errors import ConfigurationError
from tsi.models.decoder_config import DecoderConfig

DATA, MODEL = "data", "model"

# By the end of a parameter's path: the axis that is divided, and the field of the
# configuration that the number of devices must divide.
RULES: dict[str, tuple[int, str]] = {
    "trunk.embedding": (-2, "vocab_size"),
    "attention.query.kernel": (-1, "num_heads"),
    "attention.query.bias": (-1, "num_heads"),
    "attention.key.kernel": (-1, "num_kv_heads"),
    "attention.key.bias": (-1, "num_kv_heads"),
    "attention.value.kernel": (-1, "num_kv_heads"),
    "attention.value.bias": (-1, "num_kv_heads"),
    "attention.out.kernel": (-2, "num_heads"),
    "feed_forward.gate.kernel": (-1, "hidden"),
    "feed_forward.gate.bias": (-1, "hidden"),
    "feed_forward.up.kernel": (-1, "hidden"),
    "feed_forward.up.bias": (-1, "hidden"),
    "feed_forward.down.kernel": (-2, "hidden"),
    "head.kernel": (-1, "vocab_size"),
}


class Memory(NamedTuple):
    """Bytes of arrays: of one copy of all, and on each device."""

    total: int
    by_device: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{self.total / 1e6:.1f} MB"]
        for device, size in self.by_device.items():
            share = size / max(self.total, 1)
            lines.append(f"{device}: {size / 1e6:.1f} MB ({share:.0%})")
        return "\n".join(lines)


def make_mesh(
    data: int, model: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of ``data`` times ``model`` devices.

    Args:
        data: number of devices over which the rows of a batch are divided.
        model: number of devices over which one copy of the weights is divided.
        devices: to use; the first of all devices, if None.

    Raises:
        ConfigurationError: there are too few devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if min(data, model) < 1 or data * model > len(devices):
        raise ConfigurationError(
            f"A mesh of {data} times {model} devices was asked for, and there are "
            f"{len(devices)}; choose numbers whose product is at most that."
        )
    grid = np.array(devices[: data * model]).reshape(data, model)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def sharding_of(
    path: str, shape: tuple[int, ...], config: DecoderConfig, mesh: Mesh
) -> NamedSharding:
    """The sharding of one parameter.

    Args:
        path: in the module, such as ``trunk.blocks.attention.query.kernel``.
        shape: of the whole parameter.
        config: of the model, for the numbers of heads.
        mesh: weights are divided over its axis ``model``, if it has one. Explicit axes
            are taken as automatic, because the compiler must choose how to divide
            activations.
    """
    automatic = (AxisType.Auto,) * len(mesh.axis_names)
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=automatic)
    spec: list[str | None] = [None] * len(shape)
    parts = mesh.shape.get(MODEL, 1)
    rule = next((rule for end, rule in RULES.items() if _ends(path, end)), None)
    if parts > 1 and rule is not None:
        axis, unit = rule
        if getattr(config, unit) % parts == 0:
            spec[axis] = MODEL
    return NamedSharding(mesh, PartitionSpec(*spec))


def parts_of_heads(heads: int, mesh: Mesh) -> int:
    """The number of devices over which keys and values are divided.

    It is 1 if the number of heads does not divide evenly.
    """
    parts = mesh.shape.get(MODEL, 1)
    return parts if heads % parts == 0 else 1


def _ends(path: str, end: str) -> bool:
    return path == end or path.endswith("." + end)


def processes_of(mesh: Mesh | None) -> int:
    """The number of processes that the devices of a mesh belong to."""
    if mesh is None:
        return 1
    return len({device.process_index for device in mesh.devices.flat})


def spans_processes(mesh: Mesh | None) -> TypeGuard[Mesh]:
    """Whether a mesh has devices of several processes; None is one device."""
    return processes_of(mesh) > 1


def put(tree: Any, sharding: Sharding) -> Any:
    """Put arrays on devices, which may belong to several processes.

    Args:
        tree: of arrays. If the devices belong to several processes, their values must
            be the same in all of them, which is not checked, and arrays that are
            already there keep their sharding.
        sharding: of each array.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_own_shards(leaf, sharding), tree)


def _put_own_shards(leaf: Any, sharding: Sharding) -> jax.Array:
    """Put the shards of this process on its devices; no process sends any."""
    if isinstance(leaf, jax.Array):
        if leaf.sharding.device_set == sharding.device_set:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = _put_own_shards(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(
        values.shape, sharding, lambda index: values[index]
    )


def keep_or_replicate(tree: Any, mesh: Mesh) -> Any:
    """Keep arrays that are on a mesh's devices, and replicate all others over them.

    Args:
        tree: of arrays.
        mesh: the devices.
    """
    devices = set(mesh.devices.flat)
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> Any:
        is_placed = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
        # Weights that were not loaded have nothing to copy.
        is_placed = is_placed or isinstance(leaf, jax.ShapeDtypeStruct)
        return leaf if is_placed else put(leaf, replicated)

    return jax.tree.map(place, tree)


def memory(held: Any) -> Memory:
    """The number of bytes on each device.

    Args:
        held: a model, of which its weights count, or any tree of arrays, such as the
            caches of :class:`tsi.reasoning.target.Particles`.
    """
    arrays = nnx.state(held, nnx.Param) if isinstance(held, nnx.Module) else held
    total, by_device = 0, dict[str, int]()
    for leaf in jax.tree.leaves(arrays):
        total += leaf.nbytes
        for shard in leaf.addressable_shards:
            name = str(shard.device)
            by_device[name] = by_device.get(name, 0) + shard.data.nbytes
    return Memory(total, by_device)
