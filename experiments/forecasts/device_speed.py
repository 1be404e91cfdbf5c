"""The speed of devices, measured with matrix products of a policy's shape."""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MAX_BYTES = 2**28
"""Size of the matrices with which speed is measured: larger than processor caches."""


class Speed(NamedTuple):
    """FLOPs per second of all devices, and the source of the number."""

    flops: float
    source: str


def measure_speed(
    config: Any, dtype: Any, rows: int, devices: Sequence[jax.Device]
) -> Speed:
    """Measure the speed of matrix products of the policy's shape.

    Args:
        config: of the policy.
        dtype: of its computations.
        rows: R, number of rows on each device.
        devices: compute at the same time and independently.
    """
    itemsize = jnp.dtype(dtype).itemsize
    layer = 2 * config.width * config.hidden
    layers = max(1, min(config.num_layers, MAX_BYTES // (layer * itemsize)))
    mesh = Mesh(np.asarray(devices), "devices")
    replicated, sharded = (NamedSharding(mesh, P(axis)) for axis in (None, "devices"))

    def ones(shape: tuple[int, ...], where: NamedSharding) -> Any:
        return jax.device_put(np.ones(shape, dtype), where)

    up = ones((layers, config.width, config.hidden), replicated)
    down = ones((layers, config.hidden, config.width), replicated)

    @jax.jit
    def products(x: Any, up: Any, down: Any) -> Any:
        def apply_layer(x: Any, weights: Any) -> Any:
            # Division keeps the numbers in range, whatever the width.
            return x @ weights[0] / config.width @ weights[1] / config.hidden, None

        return jax.lax.scan(apply_layer, x, (up, down))[0]

    x = ones((rows * len(devices), config.width), sharded)
    jax.block_until_ready(products(x, up, down))
    best = math.inf
    for _ in range(5):
        start_time = time.perf_counter()
        jax.block_until_ready(products(x, up, down))
        best = min(best, time.perf_counter() - start_time)
    location = "" if len(devices) == 1 else f" on each of {len(devices)} devices"
    flops = 2.0 * x.shape[0] * layer * layers / best
    return Speed(flops, f"measured, {rows} rows{location}")
