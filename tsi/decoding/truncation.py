"""Top-k, top-p and min-p: restrict the tokens that a policy may draw.

The truncated policy is the p of the target. Its probabilities are those of the kept
tokens, normalised, in draws and in repeated steps. Weights cannot correct for the
difference to the full policy, since excluded tokens are never drawn.

The order is that of transformers' generation: temperature, top-k, top-p among the
remaining tokens, then min-p. Tokens that tie with the least likely kept token are kept
as well, so that the result does not depend on the order of the vocabulary;
transformers' top-p drops some ties.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError


class Truncation(NamedTuple):
    """Which tokens of each distribution are kept; None keeps all.

    Attributes:
        top_k: the k most likely tokens.
        top_p: the smallest set of most likely tokens with at least this probability
            (arXiv 1904.09751).
        min_p: tokens with at least this fraction of the most likely token's probability
            (arXiv 2407.01082).
    """

    top_k: Int[Array, ""] | int | None = None
    top_p: Float[Array, ""] | float | None = None
    min_p: Float[Array, ""] | float | None = None

    def check(self) -> None:
        """Refuse values that are not numbers, or that would keep no token.

        Raises:
            ConfigurationError: see above.
        """
        k, p, share = self
        if k is not None and (not _is_number(k, "iu") or k < 1):
            raise ConfigurationError(
                f"top_k is {k!r}. Give the number of kept tokens, 1 or more, or None."
            )
        if p is not None and (not _is_number(p, "fiu") or not 0 < p <= 1):
            raise ConfigurationError(
                f"top_p is {p!r}. Give the probability to keep, above 0 and at most 1, "
                "or None."
            )
        if share is not None and (not _is_number(share, "fiu") or not 0 <= share <= 1):
            raise ConfigurationError(
                f"min_p is {share!r}. Give a fraction of the largest probability, "
                "from 0 to 1, or None."
            )

    def as_arrays(self) -> "Truncation":
        """Values as arrays, so that one program serves all values; None keeps all."""
        k, p, share = self
        return Truncation(
            None if k is None else jnp.int32(min(int(k), 2**31 - 1)),
            None if p is None or p >= 1 else jnp.float32(p),
            None if share is None or share <= 0 else jnp.float32(share),
        )


def truncate(
    logits: Float[Array, "*b V"], temperature: Float[Array, ""], truncation: Truncation
) -> Float[Array, "*b V"]:
    """Logits, with -inf at tokens that are excluded at this temperature.

    Args:
        logits: logits before division by the temperature.
        temperature: the policy's temperature; at 0 the most likely tokens are always
            kept.
        truncation: which tokens are kept.
    """
    top_k, top_p, min_p = truncation
    order = _order(logits)
    is_kept = logits > -jnp.inf
    if top_k is not None:
        is_kept &= (
            order >= _threshold(order, is_kept.astype(jnp.float32), top_k)[..., None]
        )
    if top_p is None and min_p is None:
        return jnp.where(is_kept, logits, -jnp.inf)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    shifted = (logits - peak) / jnp.where(temperature > 0, temperature, 1.0)
    if top_p is not None:
        p = jnp.where(is_kept, jnp.exp(shifted), 0.0)
        mass = top_p * jnp.sum(p, axis=-1)
        is_kept &= order >= _threshold(order, p, mass)[..., None]
    if min_p is not None:
        is_kept &= shifted >= jnp.log(min_p)
    return jnp.where(is_kept, logits, -jnp.inf)


def _order(x: Float[Array, "*b V"]) -> Int[Array, "*b V"]:
    """Integers in the same order as the float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _threshold(
    order: Int[Array, "*b V"], weights: Float[Array, "*b V"], amount: Any
) -> Int[Array, "*b"]:
    """The largest integer such that at least the given weight is at or above it.

    Bisection takes 32 sums, which is faster than sorting a vocabulary.
    """
    low = jnp.full(order.shape[:-1], -(2**31), jnp.int32)
    high = jnp.full(order.shape[:-1], 2**31 - 1, jnp.int32)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        # The mean of the two, rounded up, without overflow.
        middle = (low | high) - ((low ^ high) >> 1)
        above = jnp.sum(jnp.where(order >= middle[..., None], weights, 0.0), axis=-1)
        enough = above >= amount
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    low, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return low


def _is_number(value: object, kinds: str) -> Bool[np.ndarray, ""] | bool:
    if np.ndim(value) or np.asarray(value).dtype.kind not in kinds:  # type: ignore
        return False
    return math.isfinite(value)  # type: ignore[arg-type]
