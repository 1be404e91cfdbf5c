"""A step of a language model as a numpyro distribution.

A step consists of the tokens up to and including one that ends a step, at most
`max_tokens`:

    log p(step | prefix) = sum_j log p(token_j | prefix, token_{<j}).

The model is a pure function that gives the log-probabilities of the next token after a
prefix; it may be a table or a transformer. Every token costs a forward pass over the
whole prefix. Use this for models inside larger numpyro programs; `tsi.reasoning.target`
decodes with a cache.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int, Key
from numpyro.distributions import constraints

from tsi.step_keys import AnyKey, single_key

PADDING = -1
"""Padding of a step after its last token."""


class TokenStep(dist.Distribution):
    """The distribution of the next step after a prefix.

    Args:
        next_log_probs: `(params, tokens [S], length []) -> [V]`, the normalised
            log-probabilities of the token after the first `length` tokens; later tokens
            must not affect it.
        params: parameters of the model.
        tokens: the prefix, [S], int32. A step is cut at S, and a full prefix has only
            the step without tokens.
        length: number of tokens of the prefix, [].
        ends: whether each token of the vocabulary ends a step, [V].
        max_tokens: C, static; a step is cut after C tokens.

    A value is int32 [C], padded with -1 after the last token.
    """

    # numpyro's scan reads the number of stacked steps from the length.
    arg_constraints: dict[str, Any] = {  # noqa: RUF012
        "length": constraints.nonnegative_integer
    }
    pytree_data_fields = ("params", "tokens", "length", "ends")
    pytree_aux_fields = ("next_log_probs", "max_tokens")

    def __init__(
        self,
        next_log_probs: Callable[..., Any],
        params: Any,
        tokens: Int[Array, "S"],
        length: Int[Array, ""] | int,
        ends: Bool[Array, "V"],
        *,
        max_tokens: int,
        validate_args: bool | None = None,
    ) -> None:
        self.next_log_probs, self.params = next_log_probs, params
        self.tokens, self.length = tokens, jnp.asarray(length, jnp.int32)
        self.ends, self.max_tokens = ends, max_tokens
        # A value is a sequence over the whole vocabulary; a sequence that is not a step
        # has probability zero.
        super().__init__((), (max_tokens,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Integers from -1 to the last token; not all sequences are steps."""
        size = self.ends.shape[0]
        return constraints.independent(constraints.integer_interval(-1, size - 1), 1)

    def sample(
        self, key: AnyKey, sample_shape: tuple[int, ...] = ()
    ) -> Int[Array, "*batch C"]:
        """Draw steps; token j of a step uses fold_in(key, j)."""
        key = single_key(key)
        if sample_shape:
            keys = jax.random.split(key, sample_shape).reshape(-1)
            return jax.vmap(self._draw)(keys).reshape(*sample_shape, -1)
        return self._draw(key)

    def _draw(self, key: Key[Array, ""]) -> Int[Array, "C"]:
        def draw_token(carry: tuple, offset: Array) -> tuple[tuple, Array]:
            tokens, length, active = carry
            log_p = self.next_log_probs(self.params, tokens, length)
            draw = jax.random.categorical(jax.random.fold_in(key, offset), log_p)
            tokens, length, token = self._write(tokens, length, active, draw)
            return (tokens, length, self._continues(active, token, length)), token

        _, step = jax.lax.scan(draw_token, self._start(), jnp.arange(self.max_tokens))
        return step

    def log_prob(self, value: Int[Array, "*batch C"]) -> Float[Array, "*batch"]:
        """log p of steps; -inf for sequences that are not steps."""
        if jnp.ndim(self.length):
            return jax.vmap(lambda row, steps: row.log_prob(steps))(self, value)
        flat = jnp.reshape(value, (-1, self.max_tokens))
        return jax.vmap(self._score)(flat).reshape(jnp.shape(value)[:-1])

    def _score(self, step: Int[Array, "C"]) -> Float[Array, ""]:
        size = self.ends.shape[0]

        def score_token(carry: tuple, token: Array) -> tuple[tuple, Array]:
            tokens, length, active = carry
            log_p = self.next_log_probs(self.params, tokens, length)
            possible = (token >= 0) & (token < size)
            log_prob = jnp.where(
                possible, log_p[jnp.clip(token, 0, size - 1)], -jnp.inf
            )
            padding = jnp.where(token == PADDING, 0.0, -jnp.inf)
            score = jnp.where(active, log_prob, padding)
            tokens, length, token = self._write(tokens, length, active, token)
            return (tokens, length, self._continues(active, token, length)), score

        _, scores = jax.lax.scan(score_token, self._start(), step)
        return jnp.sum(scores)

    def _start(self) -> tuple[Array, Array, Array]:
        return self.tokens, self.length, self.length < self.tokens.shape[0]

    def _write(
        self, tokens: Array, length: Array, active: Array, token: Array
    ) -> tuple[Array, Array, Array]:
        token = jnp.where(active, token, PADDING).astype(jnp.int32)
        place = jnp.where(active, length, tokens.shape[0])
        return tokens.at[place].set(token, mode="drop"), length + active, token

    def _continues(self, active: Array, token: Array, length: Array) -> Array:
        has_ended = self.ends[jnp.maximum(token, 0)]
        return active & ~has_ended & (length < self.tokens.shape[0])


def append_step(
    tokens: Int[Array, "S"], length: Int[Array, ""] | int, step: Int[Array, "C"]
) -> tuple[Int[Array, "S"], Int[Array, ""]]:
    """Append the tokens of a step to a prefix; also the new length."""
    is_token = step >= 0
    places = jnp.where(is_token, length + jnp.arange(step.shape[0]), tokens.shape[0])
    appended = tokens.at[places].set(step.astype(tokens.dtype), mode="drop")
    return appended, (length + jnp.sum(is_token)).astype(jnp.int32)
