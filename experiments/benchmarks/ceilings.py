"""The highest speed of the default device, measured with simple kernels.

A product of two square matrices for arithmetic, and a sum and a copy of a long array
for memory. Fractions of published peaks would be less informative, because clock rates,
libraries and other users differ between machines with the same processor.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Ceilings(NamedTuple):
    """FLOPs per second and bytes per second of a device, for one type of numbers."""

    flops: float
    bandwidth: float


def seconds_of(call: Callable[[], object], repeats: int) -> list[float]:
    """Wall times of a call that waits for its result; a first call is not timed."""
    call()
    times = []
    for _ in range(repeats):
        start_time = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_time)
    return times


def measure_ceilings(dtype: DTypeLike, sizes: list[int], num_bytes: int) -> Ceilings:
    """The best of a few runs of each kernel.

    Args:
        dtype: of matrices and arrays.
        sizes: of the square matrices; the fastest counts.
        num_bytes: size of the array, much larger than any cache.
    """
    product = jax.jit(jnp.matmul)
    flops = 0.0
    for size in sizes:
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        seconds = min(seconds_of(partial(_wait, product, a, a), 5))
        flops = max(flops, 2 * size**3 / seconds)
    x = jnp.ones(num_bytes // jnp.dtype(dtype).itemsize, dtype)
    total = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    copy = jax.jit(lambda x: x + 1)
    read_seconds = min(seconds_of(partial(_wait, total, x), 5))
    copy_seconds = min(seconds_of(partial(_wait, copy, x), 5))
    return Ceilings(flops, max(x.nbytes / read_seconds, 2 * x.nbytes / copy_seconds))


def _wait(program: Callable[..., Any], *args: Any) -> None:
    jax.block_until_ready(program(*args))
