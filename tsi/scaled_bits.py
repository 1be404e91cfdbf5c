"""Random bits as exact integers below a bound, for draws without rounding."""

import jax.numpy as jnp
from jaxtyping import Array, UInt32


def scale_bits(
    bits: UInt32[Array, "..."], bound: UInt32[Array, "..."]
) -> UInt32[Array, "..."]:
    """floor(bits * bound / 2^32): scale random bits to integers in [0, bound)."""
    low, high = bits & 0xFFFF, bits >> 16
    bound_low, bound_high = bound & 0xFFFF, bound >> 16
    middle = high * bound_low + ((low * bound_low) >> 16)
    carry = (middle & 0xFFFF) + low * bound_high
    return high * bound_high + (middle >> 16) + (carry >> 16)


def position_bits(
    position: UInt32[Array, "..."],
    bits: UInt32[Array, "..."],
    bound: UInt32[Array, "..."],
) -> UInt32[Array, "..."]:
    """floor((position 2^32 + bits) / bound): a position in [0, bound) as random bits.

    Args:
        position: uniform on the integers in [0, bound).
        bits: further random bits.
        bound: at most 2^31.
    """
    quotient, rest = jnp.zeros_like(position), position
    for place in range(31, -1, -1):
        rest = 2 * rest + ((bits >> place) & 1)
        fits = rest >= bound
        quotient = 2 * quotient + fits
        rest = jnp.where(fits, rest - bound, rest)
    return quotient
