"""The logarithm of a uniform random number, resolved far below 2^-23.

A float32 of `jax.random.uniform` is a multiple of 2^-23, so an event of probability p
that is decided by `u < p` has at least probability 2^-23, however small p is. Here u
has 64 random bits,

    u = (high 2^32 + low + 1/2) / 2^64,

rounded to the precision of the result. `log_uniform(key) < log p` has probability p to
2^-64 and to the relative rounding error. Below 2^-65 it is never true, and for log p >=
0 it is always true.

The upper bits are those of `jax.random.uniform` in float32, which has u rounded down to
a multiple of 2^-23. So both give the same decision under the same key unless p is
between the two.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from tsi.weights import weight_dtype

LARGEST = -(2.0**-25)
"""Upper bound of the logarithm. Without it, u could round to one."""


def log_uniform(
    key: Key[Array, ""], shape: Sequence[int] = ()
) -> Float[Array, "*shape"]:
    """Draw logarithms of uniform numbers; all are between log 2^-65 and -2^-25.

    Args:
        key: a typed key.
        shape: of the result.
    """
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32).astype(weight_dtype())
    # Powers of two scale exactly, and 2^-65 is a normal float32.
    return jnp.minimum(jnp.log(high * 2.0**-32 + (low + 0.5) * 2.0**-64), LARGEST)
