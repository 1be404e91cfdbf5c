"""Top-k, top-p and min-p: which tokens a policy may write at all.

A truncated policy is a policy: its probabilities are those of the tokens that are kept,
normalised, and this is the p of the target, of what is drawn and of what is repeated.
No correction to the whole policy exists, since no weight brings back a token that is
never drawn.

The order is that of transformers' generation: the temperature, then top-k, then top-p
among what is left, then min-p. Tokens as likely as the last one that is kept are kept
too, so that the order of the vocabulary decides nothing; transformers' top-p drops
some of them.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tsi.errors import ConfigurationError


class Truncation(NamedTuple):
    """What is kept of each token's distribution; None keeps everything.

    Attributes:
        top_k: the most likely tokens, so many.
        top_p: the fewest most likely tokens that have this mass (arXiv 1904.09751).
        min_p: tokens that have at least this share of the most likely one's probability
            (arXiv 2407.01082).
    """

    top_k: Int[Array, ""] | int | None = None
    top_p: Float[Array, ""] | float | None = None
    min_p: Float[Array, ""] | float | None = None

    def check(self) -> None:
        """Refuse what is not a number, and what would leave no token.

        Raises:
            ConfigurationError: see above.
        """
        k, p, share = self
        if k is not None and (not _is_number(k, "iu") or k < 1):
            raise ConfigurationError(
                f"top_k is {k!r}; give how many tokens are kept, 1 or more, or None."
            )
        if p is not None and (not _is_number(p, "fiu") or not 0 < p <= 1):
            raise ConfigurationError(
                f"top_p is {p!r}; give the mass that is kept, above 0 and at most 1, "
                "or None."
            )
        if share is not None and (not _is_number(share, "fiu") or not 0 <= share <= 1):
            raise ConfigurationError(
                f"min_p is {share!r}; give a share of the largest probability, from 0 "
                "to 1, or None."
            )

    def as_arrays(self) -> "Truncation":
        """Without what keeps everything, and as arrays, so that one program serves."""
        k, p, share = self
        return Truncation(
            None if k is None else jnp.int32(min(int(k), 2**31 - 1)),
            None if p is None or p >= 1 else jnp.float32(p),
            None if share is None or share <= 0 else jnp.float32(share),
        )


def truncate(
    logits: Float[Array, "*b V"], temperature: Float[Array, ""], truncation: Truncation
) -> Float[Array, "*b V"]:
    """Logits, -inf where the policy at this temperature may not write the token.

    Args:
        logits: before the temperature.
        temperature: of the policy; at 0 the most likely tokens are kept in any case.
        truncation: what is kept.
    """
    top_k, top_p, min_p = truncation
    order = _order(logits)
    kept = logits > -jnp.inf
    if top_k is not None:
        kept &= order >= _threshold(order, kept.astype(jnp.float32), top_k)[..., None]
    if top_p is None and min_p is None:
        return jnp.where(kept, logits, -jnp.inf)
    peak = jnp.max(logits, axis=-1, keepdims=True)
    shifted = (logits - peak) / jnp.where(temperature > 0, temperature, 1.0)
    if top_p is not None:
        p = jnp.where(kept, jnp.exp(shifted), 0.0)
        mass = top_p * jnp.sum(p, axis=-1)
        kept &= order >= _threshold(order, p, mass)[..., None]
    if min_p is not None:
        kept &= shifted >= jnp.log(min_p)
    return jnp.where(kept, logits, -jnp.inf)


def _order(x: Float[Array, "*b V"]) -> Int[Array, "*b V"]:
    """Whole numbers in the order of float32 numbers."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _threshold(
    order: Int[Array, "*b V"], weights: Float[Array, "*b V"], amount: Any
) -> Int[Array, "*b"]:
    """The largest number with that much weight at or above it.

    Found bit by bit in 32 sums, since sorting a vocabulary takes longer.
    """
    low = jnp.full(order.shape[:-1], -(2**31), jnp.int32)
    high = jnp.full(order.shape[:-1], 2**31 - 1, jnp.int32)

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        # Rounded up, without an overflow.
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
