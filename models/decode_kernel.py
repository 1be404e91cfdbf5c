"""Attention of one query per row to the filled positions of its cache, by a kernel.

The plain path reads all positions of a slot, filled or not, and stores the scores.
JAX's kernel for GPUs (``pallas.ops.gpu.decode_attention``) reads the filled positions
only, in blocks, and keeps the scores on the chip. Its keys are in the order of
positions. On a CPU it runs in Pallas's interpreter, which is slow and exists for tests.

The interpreter and the translation for CUDA have been tested. The kernel has not been
run on a GPU.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from tsi.errors import ConfigurationError
from tsi.models.decoder_config import DecoderConfig

MIN_BLOCK, MAX_BLOCK = 16, 128
"""Positions that the kernel reads at once; powers of two."""
MAX_SPLITS = 16
"""Parts of a cache that are read in parallel, and merged at the end."""
HEADS_AT_ONCE = 16
"""Query heads per key-value head that one program of the kernel handles."""


def check_kernel(
    config: DecoderConfig, mesh: Mesh | None, cache_dtype: Any, dtype: Any
) -> None:
    """Check that the kernel computes the attention of a model.

    Args:
        config: of the model.
        mesh: the devices; None for one.
        cache_dtype: of keys and values; None for the type of the weights.
        dtype: of the weights.

    Raises:
        ConfigurationError: it does not.
    """
    reason = ""
    if jax.default_backend() not in ("cpu", "gpu"):
        reason = f"there is no such kernel for {jax.default_backend()}"
    elif mesh is not None and mesh.shape.get("model", 1) > 1:
        reason = "the model is divided over several devices"
    elif jnp.zeros(0).dtype == jnp.float64:
        reason = "JAX's kernel does not run with jax_enable_x64"
    elif cache_dtype is not None and jnp.dtype(cache_dtype) != jnp.dtype(dtype):
        reason = f"keys and values are in {cache_dtype}, and weights in {dtype}"
    elif config.sliding_window is not None:
        reason = "some layers of the model attend to a window of positions only"
    elif config.attention_softcap is not None:
        reason = "the model caps its attention scores"
    elif config.head_width < MIN_BLOCK or not is_power_of_two(config.head_width):
        reason = (
            f"the width of the heads is {config.head_width}, and must be a power of "
            f"two from {MIN_BLOCK} on"
        )
    if reason:
        raise ConfigurationError(
            f"Attention by a kernel is not possible: {reason}. Leave out attention "
            "(--attention)."
        )


def is_power_of_two(number: int) -> bool:
    """Whether a positive number is a power of two."""
    return number & (number - 1) == 0


def block_of(size: int) -> int:
    """Positions that are read at once, of a cache of `size`; 0 if it cannot be read."""
    block = math.gcd(size, MAX_BLOCK)
    return block if block >= MIN_BLOCK else 0


def splits_of(size: int) -> int:
    """Parts of a cache of `size` positions that are read in parallel."""
    blocks = size // block_of(size)
    return max(n for n in range(1, MAX_SPLITS + 1) if blocks % n == 0)


def attend_first_positions(
    queries: Float[Array, "R K G h"],
    keys: Float[Array, "R K S h"],
    values: Float[Array, "R K S h"],
    lengths: Int[Array, " R"],
) -> tuple[Float[Array, "R K G"], Float[Array, "R K G"], Float[Array, "R K G h"]]:
    """Attention of the queries, which are already scaled, to the first positions.

    Args:
        queries: G per key-value head.
        keys, values: of S positions, a multiple of 16.
        lengths: number of filled positions of each row, which may be 0.

    Returns:
        The largest score, the sum of exponentials relative to it, and the weighted sum
        of values before normalisation. The kernel computes the last one in parts, which
        it rounds to the type of the queries.
    """
    from jax.experimental.pallas.ops.gpu import decode_attention

    rows, heads, group, width = queries.shape
    size = keys.shape[2]

    def flatten(x: Any) -> Any:
        return x.reshape(rows * heads, *x.shape[2:])

    mixed, (total, peak) = decode_attention.mqa(
        *map(flatten, (queries, keys, values)),
        kv_seq_len=lengths.repeat(heads),
        sm_scale=1.0,
        block_h=HEADS_AT_ONCE,
        block_k=block_of(size),
        k_splits=splits_of(size),
        interpret=jax.default_backend() == "cpu",
        return_residuals=True,
        normalize_output=False,
    )
    shape = rows, heads, group
    return (
        peak.reshape(shape),
        total.reshape(shape),
        mixed.astype("float32").reshape(*shape, width),
    )
