"""Layers that all model families share.

Axes: R rows, Q query positions, S cache positions, L layers, D model width,
F feed-forward width, H query heads, K key-value heads, h head width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from tsi.models import quantized


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation, computed in float32 (arXiv 1910.07467).

    ``offset`` is added to the stored scale. It is 0, or 1 where scale - 1 is stored, as
    in Gemma.
    """

    def __init__(
        self,
        width: int,
        epsilon: float,
        *,
        offset: float = 0.0,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, dtype))
        self.epsilon, self.offset = epsilon, offset

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * (self.scale[...].astype(jnp.float32) + self.offset)).astype(x.dtype)


def product_in_float32(
    x: Float[Array, "*b i"],
    matrix: Shaped[Array, "_i o"],
    scale: Shaped[Array, "..."] | None = None,
) -> Float[Array, "*b o"]:
    """A matrix product with a float32 result for factors of any type.

    Accelerators sum in float32 anyway, and rounding a logit of 20 to bfloat16 would
    change it by up to 1/16.

    Args:
        x: the left factor.
        matrix: the right factor, of a float type or quantised.
        scale: of a quantised matrix, see :mod:`tsi.models.quantized`.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if scale is not None:
        return quantized.product(x, matrix, scale, dtype).astype(jnp.float32)
    product = jnp.matmul(x, matrix, preferred_element_type=dtype)
    return product.astype(jnp.float32)


class Linear(nnx.Module):
    """A matrix product with kernel ``[in, out]``, and a bias if ``bias``."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        bias: bool = False,
    ) -> None:
        kernel = jax.random.normal(rngs.params(), (width_in, width_out), jnp.float32)
        self.kernel = nnx.Param((kernel * width_in**-0.5).astype(dtype))
        self.bias = nnx.Param(jnp.zeros((width_out,), dtype)) if bias else None
        # Scales of a quantised kernel, see `tsi.models.quantized`.
        self.kernel_scale: Any = None

    @property
    def scale(self) -> Array | None:
        """Scales of the kernel if it is quantised, else None."""
        return None if self.kernel_scale is None else self.kernel_scale[...]

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        if self.scale is None:
            y = x @ self.kernel[...]
        else:
            y = quantized.product(x, self.kernel[...], self.scale, x.dtype)
        return y if self.bias is None else y + self.bias[...]

    def in_float32(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """The same product in float32, not rounded to the type of the weights."""
        y = product_in_float32(x, self.kernel[...], self.scale)
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class GatedFeedForward(nnx.Module):
    """``down(activation(gate(x)) * up(x))``: SwiGLU, GeGLU (arXiv 2002.05202)."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        bias: bool = False,
    ) -> None:
        self.gate = Linear(width, hidden, rngs=rngs, dtype=dtype, bias=bias)
        self.up = Linear(width, hidden, rngs=rngs, dtype=dtype, bias=bias)
        self.down = Linear(hidden, width, rngs=rngs, dtype=dtype, bias=bias)
        self.activation = activation

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))
