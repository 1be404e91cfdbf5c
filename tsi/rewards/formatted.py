"""Published reward models, with their own format, tokenizer and step scores.

``params.reward_model`` is a :class:`tsi.models.decoder.RewardModel` for formats that
read a head, or a :class:`tsi.models.decoder.LanguageModel` for formats that compare two
tokens.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tsi.errors import ConfigurationError
from tsi.models.heads import token_log_odds
from tsi.rewards.aggregation import AGGREGATIONS, aggregate, check_aggregation
from tsi.rewards.formats import Format
from tsi.rewards.reader_state import RenderedRows
from tsi.rewards.text_reader import TextReader

FORMAT_AGGREGATIONS = (*AGGREGATIONS, "model")
"""The aggregations of :mod:`tsi.rewards.aggregation`, and "model": all steps as one
step."""


class FormattedReward(TextReader):
    """Aggregated step scores of the solution so far; see :class:`TextReader`.

    Scores are read from the rendering that ends with the newest step, so they equal
    what the published code computes from the same text in one pass.

    Args:
        format: a format of :mod:`tsi.rewards.formats`.
        decode: function from the policy's token ids to text.
        aggregation: one of :data:`FORMAT_AGGREGATIONS`.
        max_steps, max_tokens, width: see :class:`TextReader`.

    Raises:
        UnknownNameError: there is no such aggregation.
        ConfigurationError: an argument is not a positive number.
    """

    def __init__(
        self,
        format: Format,
        decode: Callable[[list[int]], str],
        *,
        max_steps: int,
        max_tokens: int,
        width: int = 64,
        aggregation: str = "last",
    ) -> None:
        check_aggregation(aggregation, FORMAT_AGGREGATIONS)
        super().__init__(
            format,
            decode,
            max_steps=max_steps,
            max_tokens=max_tokens,
            width=width,
            one_block=aggregation == "model",
        )
        self.aggregation = "last" if self.one_block else aggregation

    def values(
        self, model: Any, hidden: Float[Array, "R W D"], following: Int[Array, "R W"]
    ) -> Float[Array, "R W"]:
        """Log-odds at each id.

        Raises:
            ConfigurationError: the format does not read models of this class.
        """
        if type(model) not in self.format.heads:
            head_names = " or ".join(head.__name__ for head in self.format.heads)
            raise ConfigurationError(
                f"{type(self.format).__name__} reads a {head_names}, and the reward "
                f"model is a {type(model).__name__}. Choose the format of this model."
            )
        answers = self.format.answers
        if answers is None:
            return model.log_odds(hidden)
        return token_log_odds(model, hidden, *answers)

    def log_odds(
        self,
        values: Float[Array, "R L"],
        rendered: RenderedRows,
        log_prob: Float[Array, " R"],
    ) -> Float[Array, " R"]:
        """See :class:`TextReader`."""
        del log_prob
        scores = jnp.take_along_axis(values, rendered.marks, axis=1)
        log_odds = aggregate(scores, rendered.num_marks, self.aggregation)
        return jnp.where(rendered.num_marks < 0, jnp.nan, log_odds)
