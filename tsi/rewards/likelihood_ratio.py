"""The likelihood ratio of a larger model and the policy, as log-odds.

    log-odds = beta (log p_large(y | c) - log p_policy(y | c))

With beta = 1 and telescoping odds, the weights are p_large / p_policy. The particles
are then an importance sample of the larger model, with the policy as the proposal. The
policy's log p is that of its own tokens at its temperature. The larger model's log p is
that of the same text at temperature 1, encoded by the larger model's tokenizer. Since
this is only one of several encodings of the text, it is a lower bound of the text's log
p.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.decoding.token_draws import log_prob_of
from tsi.errors import ConfigurationError
from tsi.models.decoder import LanguageModel
from tsi.numeric_arguments import check_numbers
from tsi.rewards.formats import ContinuationFormat
from tsi.rewards.reader_state import RenderedRows
from tsi.rewards.text_reader import TextReader


class LikelihoodRatio(TextReader):
    """``params.reward_model`` is the larger :class:`LanguageModel`.

    The likelihood of a token needs the model's output at the previous token, so one
    token is read again in each step.

    Args:
        format: a format with the larger model's tokenizer.
        decode: function from the policy's token ids to text.
        beta: factor of the difference.
        max_steps, max_tokens, width: see :class:`TextReader`.
    """

    looks_ahead = True

    def __init__(
        self,
        format: ContinuationFormat,
        decode: Callable[[list[int]], str],
        *,
        max_steps: int,
        max_tokens: int,
        width: int = 64,
        beta: float = 1.0,
    ) -> None:
        super().__init__(
            format, decode, max_steps=max_steps, max_tokens=max_tokens, width=width
        )
        check_numbers("A likelihood ratio", beta=beta)
        self.beta = beta

    def values(
        self, model: Any, hidden: Float[Array, "R W D"], following: Int[Array, "R W"]
    ) -> Float[Array, "R W"]:
        """log p of the next id at each id, one position at a time to save memory.

        Raises:
            ConfigurationError: the model is not a language model.
        """
        if not isinstance(model, LanguageModel):
            raise ConfigurationError(
                "A likelihood ratio needs a LanguageModel as the reward model, and "
                f"this one is a {type(model).__name__}. Name a language model."
            )

        def log_prob_at(
            place: tuple[Float[Array, "R D"], Int[Array, " R"]],
        ) -> Float[Array, " R"]:
            state, token = place
            return log_prob_of(model.logits(state), token, jnp.float32(1.0))

        return jax.lax.map(log_prob_at, (jnp.swapaxes(hidden, 0, 1), following.T)).T

    def log_odds(
        self,
        values: Float[Array, "R L"],
        rendered: RenderedRows,
        log_prob: Float[Array, " R"],
    ) -> Float[Array, " R"]:
        """See :class:`tsi.rewards.text_reader.TextReader`."""
        places = jnp.arange(values.shape[1])
        first, last = rendered.marks[:, :1], rendered.marks[:, 1:2]
        inside = (places >= first) & (places < last)
        log_p = jnp.sum(jnp.where(inside, values, 0.0), axis=1)
        log_odds = self.beta * (log_p - log_prob)
        return jnp.where(rendered.num_marks < 0, jnp.nan, log_odds)
