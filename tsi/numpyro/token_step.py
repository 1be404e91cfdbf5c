"""A language model's step as a numpyro distribution.

A step is the tokens up to and including one that ends steps, or `max_tokens` of them:

    log p(step | prefix) = sum_j log p(token_j | prefix, token_{<j}).

The model is a pure function that gives the next token's log-probabilities after a
prefix, so that a table serves as well as a transformer. Every token costs a reading of
the whole prefix: this is for models inside larger numpyro programs, while
`tsi.reasoning.target` decodes with a cache.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int, Key
from numpyro.distributions import constraints

from tsi.step_keys import AnyKey, single_key

NOTHING = -1
"""What stands in a step after its last token."""


class TokenStep(dist.Distribution):
    """The distribution of the next step after a prefix.

    Args:
        next_log_probs: `(params, tokens [S], length []) -> [V]`, the normalised
            log-probabilities of the token after the first `length` of `tokens`; what
            stands behind those must not matter.
        params: the model's parameters.
        tokens: the prefix, [S], int32. The step's tokens need not fit: a step is cut
            where S is reached, and a full prefix has only the step without tokens.
        length: how many tokens the prefix has, [].
        ends: whether each token of the vocabulary ends a step, [V].
        max_tokens: C, static; a step is cut after so many tokens.

    A value is int32 [C], its places after the last token filled with -1.
    """

    # By the length numpyro's scan sees how many steps it has stacked.
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
        # A value is a sequence over the whole vocabulary; what is no step has
        # probability zero.
        super().__init__((), (max_tokens,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Integers from -1 to the last token; not all sequences of them are steps."""
        size = self.ends.shape[0]
        return constraints.independent(constraints.integer_interval(-1, size - 1), 1)

    def sample(
        self, key: AnyKey, sample_shape: tuple[int, ...] = ()
    ) -> Int[Array, "*batch C"]:
        """Draw steps; token j of a step is drawn with fold_in(key, j)."""
        key = single_key(key)
        if sample_shape:
            keys = jax.random.split(key, sample_shape).reshape(-1)
            return jax.vmap(self._draw)(keys).reshape(*sample_shape, -1)
        return self._draw(key)

    def _draw(self, key: Key[Array, ""]) -> Int[Array, "C"]:
        def one(carry: tuple, offset: Array) -> tuple[tuple, Array]:
            tokens, length, going = carry
            log_p = self.next_log_probs(self.params, tokens, length)
            drawn = jax.random.categorical(jax.random.fold_in(key, offset), log_p)
            tokens, length, token = self._write(tokens, length, going, drawn)
            return (tokens, length, self._goes_on(going, token, length)), token

        _, step = jax.lax.scan(one, self._start(), jnp.arange(self.max_tokens))
        return step

    def log_prob(self, value: Int[Array, "*batch C"]) -> Float[Array, "*batch"]:
        """log p of steps; -inf for what is no step."""
        if jnp.ndim(self.length):
            return jax.vmap(lambda one, steps: one.log_prob(steps))(self, value)
        flat = jnp.reshape(value, (-1, self.max_tokens))
        return jax.vmap(self._score)(flat).reshape(jnp.shape(value)[:-1])

    def _score(self, step: Int[Array, "C"]) -> Float[Array, ""]:
        size = self.ends.shape[0]

        def one(carry: tuple, token: Array) -> tuple[tuple, Array]:
            tokens, length, going = carry
            log_p = self.next_log_probs(self.params, tokens, length)
            possible = (token >= 0) & (token < size)
            live = jnp.where(possible, log_p[jnp.clip(token, 0, size - 1)], -jnp.inf)
            over = jnp.where(token == NOTHING, 0.0, -jnp.inf)
            score = jnp.where(going, live, over)
            tokens, length, token = self._write(tokens, length, going, token)
            return (tokens, length, self._goes_on(going, token, length)), score

        _, scores = jax.lax.scan(one, self._start(), step)
        return jnp.sum(scores)

    def _start(self) -> tuple[Array, Array, Array]:
        return self.tokens, self.length, self.length < self.tokens.shape[0]

    def _write(
        self, tokens: Array, length: Array, going: Array, token: Array
    ) -> tuple[Array, Array, Array]:
        token = jnp.where(going, token, NOTHING).astype(jnp.int32)
        place = jnp.where(going, length, tokens.shape[0])
        return tokens.at[place].set(token, mode="drop"), length + going, token

    def _goes_on(self, going: Array, token: Array, length: Array) -> Array:
        ended = self.ends[jnp.maximum(token, 0)]
        return going & ~ended & (length < self.tokens.shape[0])


def append_step(
    tokens: Int[Array, "S"], length: Int[Array, ""] | int, step: Int[Array, "C"]
) -> tuple[Int[Array, "S"], Int[Array, ""]]:
    """The prefix with a step's tokens behind it, and its new length."""
    real = step >= 0
    places = jnp.where(real, length + jnp.arange(step.shape[0]), tokens.shape[0])
    written = tokens.at[places].set(step.astype(tokens.dtype), mode="drop")
    return written, (length + jnp.sum(real)).astype(jnp.int32)
