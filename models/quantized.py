"""Weights stored in 8 or 4 bits and multiplied in the type of the activations.

int8: W[i, o] = s[o] q[i, o] with q in -127..127 and one float32 scale s per output;
the scale is applied to the product. int4: W[i, o] = s[i // 32, o] q[i, o] with q in
-8..7 and a bfloat16 scale per 32 inputs of an output, two q to a byte (the grid of
Q4_0, github.com/ggml-org/llama.cpp): 4.5 bits per weight. Rounding is to the nearest;
there is no calibration.

The matrices of the trunk and the vocabulary head are quantised. The embedding, which
may be the head as well, is int8 in both cases, with a scale per token. Norms, biases
and the small heads of reward models are not quantised.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tsi.errors import ConfigurationError

KINDS = ("int8", "int4")
GROUP = 32
"""Inputs that share a scale in int4."""


def check_kind(kind: str) -> None:
    """Refuse an unknown kind of quantisation.

    Raises:
        ConfigurationError: the kind is not one of `KINDS`.
    """
    if kind not in KINDS:
        raise ConfigurationError(
            f"weights is {kind!r}, an unknown quantization; choose one of "
            f"{', '.join(KINDS)}, or leave it out to keep weights in their dtype."
        )


def is_matrix(path: str) -> bool:
    """Whether the parameter at a path in the module is quantised."""
    in_trunk = path.startswith("trunk.") and path.endswith(".kernel")
    return in_trunk or path in ("trunk.embedding", "head.kernel")


def quantize_matrix(
    matrix: Float[Array, "*l i o"], kind: str, path: str = ""
) -> tuple[Array, Array]:
    """Quantise a matrix, or a stack of them; gives the integers and the scales.

    Args:
        matrix: of any float type.
        kind: one of `KINDS`.
        path: in the module; the outputs of the embedding are its tokens.
    """
    values = matrix.astype(jnp.float32)
    axis = -1 if path == "trunk.embedding" else -2
    # Matrices that do not divide into groups are small, and get int8.
    if kind == "int8" or axis == -1 or matrix.shape[-2] % GROUP:
        scale = jnp.max(jnp.abs(values), axis=axis, keepdims=True) / 127
        scale = jnp.where(scale > 0, scale, 1.0)
        integers = jnp.round(values / scale).astype(jnp.int8)
        return integers, jnp.squeeze(scale, axis)
    *stack, inputs, outputs = matrix.shape
    groups = values.reshape(*stack, inputs // GROUP, GROUP, outputs)
    # The largest entry of a group becomes -8, the end of the grid with one more step.
    largest = jnp.argmax(jnp.abs(groups), axis=-2, keepdims=True)
    scale = jnp.take_along_axis(groups, largest, axis=-2) / -8
    scale = jnp.where(scale != 0, scale, 1.0).astype(jnp.bfloat16)
    integers = jnp.round(groups / scale.astype(jnp.float32))
    integers = (jnp.clip(integers, -8, 7) + 8).astype(jnp.uint8)
    pairs = integers.reshape(*stack, inputs // 2, 2, outputs)
    packed = pairs[..., 0, :] | (pairs[..., 1, :] << 4)
    return packed, jnp.squeeze(scale, -2)


def matrix_of(kernel: Array, scale: Array, dtype: Any) -> Float[Array, "i o"]:
    """One matrix, dequantised."""
    if scale.ndim == 1:
        return (kernel.astype(jnp.float32) * scale).astype(dtype)
    pairs = jnp.stack([kernel & 15, kernel >> 4], axis=1).astype(jnp.float32) - 8
    groups = pairs.reshape(scale.shape[0], GROUP, scale.shape[1])
    groups *= scale.astype(jnp.float32)[:, None]
    return groups.reshape(-1, scale.shape[1]).astype(dtype)


def product(
    x: Float[Array, "*b i"], kernel: Array, scale: Array, dtype: Any
) -> Float[Array, "*b o"]:
    """A product with a quantised matrix.

    Args:
        x: the left factor, whose type the matrix is converted to.
        kernel, scale: of `quantize_matrix`.
        dtype: of the sums.
    """
    if scale.ndim == 1:
        sums = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=dtype)
        return (sums * scale).astype(dtype)
    matrix = matrix_of(kernel, scale, x.dtype)
    return jnp.matmul(x, matrix, preferred_element_type=dtype)


def set_scales(model: nnx.Module, scales: dict[str, Array]) -> None:
    """Set the scales of a model's quantised parameters.

    Args:
        model: with quantised parameters.
        scales: by the path of each parameter.
    """
    for path, scale in scales.items():
        *owners, name = path.split(".")
        owner: Any = model
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, f"{name}_scale", nnx.data(nnx.Param(scale)))


def quantize(model: Any, kind: str) -> Any:
    """A copy of a model with quantised matrices.

    :func:`tsi.models.loading.checkpoint.load` quantises layer by layer, so that memory
    never holds all weights unquantised.

    Args:
        model: with a trunk.
        kind: one of `KINDS`.

    Raises:
        ConfigurationError: the kind is unknown, or the model is already quantised.
    """
    check_kind(kind)
    if is_quantized(model):
        raise ConfigurationError(
            "The weights of this model are quantised already; quantise the model that "
            "it was made from."
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
    """Whether the weights of a model are quantised."""
    return hasattr(model, "trunk") and model.trunk.embedding_scale is not None
