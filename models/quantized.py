"""Weights kept in 8 or 4 bits and multiplied in the type of what is computed.

int8: W[i, o] = s[o] q[i, o] with q in -127..127 and one float32 scale s per output;
the scale is applied to the product. int4: W[i, o] = s[i // 32, o] q[i, o] with q in
-8..7 and a bfloat16 scale per 32 inputs of an output, two q to a byte (the grid of
Q4_0, github.com/ggml-org/llama.cpp): 4.5 bits a weight. Rounding is to the nearest;
nothing is calibrated.

The matrices of the trunk and the vocabulary head are kept so. The embedding, which may
be the head as well, is int8 in both cases, with a scale per token; norms, biases and
the small heads of reward models stay as they are.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tsi.errors import ConfigurationError

KINDS = ("int8", "int4")
GROUP = 32
"""Inputs that share a scale in 4 bits."""


def check_kind(kind: str) -> None:
    """Refuse what weights cannot be kept in.

    Raises:
        ConfigurationError: see above.
    """
    if kind not in KINDS:
        raise ConfigurationError(
            f"weights are to be kept as {kind!r}; choose one of {', '.join(KINDS)}, or "
            "leave it out to keep them in their dtype."
        )


def is_matrix(path: str) -> bool:
    """Whether the parameter at a path in the module is kept in few bits."""
    matrix = path.startswith("trunk.") and path.endswith(".kernel")
    return matrix or path in ("trunk.embedding", "head.kernel")


def quantize_matrix(
    matrix: Float[Array, "*l i o"], kind: str, path: str = ""
) -> tuple[Array, Array]:
    """A matrix, or a stack of them, in few bits, and its scales.

    Args:
        matrix: of any float type.
        kind: one of `KINDS`.
        path: in the module; the embedding has its tokens as outputs.
    """
    wide = matrix.astype(jnp.float32)
    axis = -1 if path == "trunk.embedding" else -2
    # What does not divide into groups is small.
    if kind == "int8" or axis == -1 or matrix.shape[-2] % GROUP:
        scale = jnp.max(jnp.abs(wide), axis=axis, keepdims=True) / 127
        scale = jnp.where(scale > 0, scale, 1.0)
        whole = jnp.round(wide / scale).astype(jnp.int8)
        return whole, jnp.squeeze(scale, axis)
    *stack, inputs, outputs = matrix.shape
    groups = wide.reshape(*stack, inputs // GROUP, GROUP, outputs)
    # The largest of a group is exact at -8, where the grid has one place more.
    largest = jnp.argmax(jnp.abs(groups), axis=-2, keepdims=True)
    scale = jnp.take_along_axis(groups, largest, axis=-2) / -8
    scale = jnp.where(scale != 0, scale, 1.0).astype(jnp.bfloat16)
    whole = jnp.round(groups / scale.astype(jnp.float32))
    whole = (jnp.clip(whole, -8, 7) + 8).astype(jnp.uint8)
    pairs = whole.reshape(*stack, inputs // 2, 2, outputs)
    packed = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    return packed, jnp.squeeze(scale, -2)


def matrix_of(kernel: Array, scale: Array, dtype: Any) -> Float[Array, "i o"]:
    """One matrix in full, from few bits."""
    if scale.ndim == 1:
        return (kernel.astype(jnp.float32) * scale).astype(dtype)
    pairs = jnp.stack([kernel & 15, kernel >> 4], axis=1).astype(jnp.float32) - 8
    groups = pairs.reshape(scale.shape[0], GROUP, scale.shape[1])
    groups *= scale.astype(jnp.float32)[:, None]
    return groups.reshape(-1, scale.shape[1]).astype(dtype)


def product(
    x: Float[Array, "*b i"], kernel: Array, scale: Array, dtype: Any
) -> Float[Array, "*b o"]:
    """A product with a matrix in few bits.

    Args:
        x: in the type that is multiplied.
        kernel, scale: of `quantize_matrix`.
        dtype: of the sums.
    """
    if scale.ndim == 1:
        whole = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=dtype)
        return (whole * scale).astype(dtype)
    matrix = matrix_of(kernel, scale, x.dtype)
    return jnp.matmul(x, matrix, preferred_element_type=dtype)


def set_scales(model: nnx.Module, scales: dict[str, Array]) -> None:
    """Tell a model's modules the scales of what they keep in few bits.

    Args:
        model: whose parameters are in few bits already.
        scales: by the path of each.
    """
    for path, scale in scales.items():
        *owners, name = path.split(".")
        owner: Any = model
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, f"{name}_scale", nnx.data(nnx.Param(scale)))


def quantize(model: Any, kind: str) -> Any:
    """A copy of a model with its matrices in few bits.

    :func:`tsi.models.loading.checkpoint.load` does the same layer by layer, so that the
    weights are never there in full.

    Args:
        model: with a trunk.
        kind: one of `KINDS`.

    Raises:
        ConfigurationError: there is no such kind, or its weights are kept so already.
    """
    check_kind(kind)
    if is_quantized(model):
        raise ConfigurationError(
            "The weights of this model are in few bits already; quantize the model "
            "that it was made from."
        )
    model = nnx.clone(model)
    scales = {}
    for keys, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        path = ".".join(map(str, keys))
        if is_matrix(path):
            matrix, scales[path] = quantize_matrix(leaf[...], kind, path)
            leaf.set_value(matrix)
    set_scales(model, scales)
    return model


def is_quantized(model: Any) -> bool:
    """Whether a model keeps its weights in few bits."""
    return hasattr(model, "trunk") and model.trunk.embedding_scale is not None
