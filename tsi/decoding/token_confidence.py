r"""A policy's confidence at a token, from its next-token distribution p_j.

Let V be the number of tokens that may be drawn, x_j the token that was written at place
j, and v any of the V tokens:

    log-prob         log p_j(x_j)
    negative-entropy sum_v p_j(v) log p_j(v)
    self-certainty   KL(uniform || p_j) = -(1/V) sum_v log(V p_j(v))
    top-k            -(1/k) sum over the k most likely v of log p_j(v)

All are larger where the policy is more confident. p_j is the softmax of the model's
logits at temperature 1, without truncation and without a repetition penalty, whatever
distribution the token was drawn from. The value at a token therefore depends only on
the text, and a plain forward pass over the text gives the same value. (Under a
truncation, the divergence from the uniform distribution would be infinite.) Ids that
only pad the vocabulary are not among the V.

References:
    [1] Kang, Zhao and Song 2025, arXiv 2502.18581 (self-certainty).
    [2] Fu, Wang, Tian and Zhao 2025, arXiv 2508.15260 (DeepConf; top-k, k = 20).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.numeric_arguments import check_numbers

MEASURES = ("log-prob", "negative-entropy", "self-certainty", "top-k")


@dataclasses.dataclass(frozen=True)
class TokenConfidence:
    """A function of the logits of each next token and the token that was written.

    Attributes:
        measure: one of :data:`MEASURES`.
        k: number of tokens of "top-k"; a smaller vocabulary uses all of its tokens.

    Raises:
        UnknownNameError: there is no such measure.
        ConfigurationError: k is not a number, or is below 1.
    """

    measure: str
    k: int = 20

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UnknownNameError("measure of confidence", self.measure, MEASURES)
        check_numbers("A measure of confidence", k=self.k)
        if self.k < 1:
            raise ConfigurationError(
                f"top-k confidence averages over k={self.k} tokens. Give at least 1."
            )

    def __call__(
        self, logits: Float[Array, "*b V"], tokens: Int[Array, "*b"]
    ) -> Float[Array, "*b"]:
        """The confidence at each token.

        Args:
            logits: logits of the model, -inf at ids that only pad the vocabulary.
            tokens: the tokens that were written.
        """
        # Without the shift, sums over a large vocabulary would lose digits.
        shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
        log_total = jax.nn.logsumexp(shifted, axis=-1)
        if self.measure == "log-prob":
            token_logits = jnp.take_along_axis(shifted, tokens[..., None], axis=-1)[
                ..., 0
            ]
            return token_logits - log_total
        if self.measure == "top-k":
            top, _ = jax.lax.top_k(shifted, min(self.k, shifted.shape[-1]))
            return log_total - _mean_of_finite(top)
        if self.measure == "self-certainty":
            size = jnp.sum(shifted > -jnp.inf, axis=-1)
            return log_total - _mean_of_finite(shifted) - jnp.log(size)
        # 0 log 0 is 0.
        mean = jnp.sum(
            jnp.where(shifted > -jnp.inf, jnp.exp(shifted) * shifted, 0.0), axis=-1
        )
        return mean / jnp.exp(log_total) - log_total


def _mean_of_finite(values: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    is_finite = values > -jnp.inf
    total = jnp.sum(jnp.where(is_finite, values, 0.0), axis=-1)
    return total / jnp.sum(is_finite, axis=-1)
