"""A request to a served policy and its answer: one step of one row."""

import math
from typing import Literal, NamedTuple

from tsi.decoding.token_draws import check_temperatures
from tsi.decoding.truncation import Truncation
from tsi.errors import ConfigurationError, ServerError

End = Literal["delimiter", "end", "limit"]
"""Why a step ended: at a delimiter, with the solution, or at its token limit."""


class Controls(NamedTuple):
    """How a server draws tokens; all settings are sent, so no server default applies.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: number of most likely tokens that are kept; None for all.
        top_p: total probability of the tokens that are kept; None for all.
        min_p: smallest probability of a kept token, as a fraction of the largest; None
            for all.
        repetition_penalty: penalty on tokens that occurred before; None for no penalty.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @property
    def is_plain(self) -> bool:
        """Whether tokens are drawn from the model's own probabilities."""
        return self == Controls()

    def change(
        self, temperature: float | None, truncation: Truncation | None
    ) -> "Controls":
        """These controls with another temperature or truncation; None changes neither.

        Raises:
            ConfigurationError: a value is invalid.
        """
        controls = self
        if temperature is not None:
            check_temperatures(temperature, None)
            controls = controls._replace(temperature=float(temperature))
        if truncation is not None:
            truncation.check()
            top_k, top_p, min_p = truncation
            controls = controls._replace(
                top_k=None if top_k is None else int(top_k),
                top_p=None if top_p is None else float(top_p),
                min_p=None if min_p is None else float(min_p),
            )
        return controls

    def check(self) -> None:
        """Refuse invalid values.

        Raises:
            ConfigurationError: see above.
        """
        check_temperatures(self.temperature, None)
        Truncation(self.top_k, self.top_p, self.min_p).check()
        penalty = self.repetition_penalty
        if penalty is not None and not 0 < penalty < math.inf:
            raise ConfigurationError(
                f"The repetition penalty must be a positive number, not {penalty}."
            )


class StepRequest(NamedTuple):
    """A step of one row.

    Attributes:
        prefix: token ids, or code points of text, of prompt and solution so far.
        max_tokens: the maximum number of tokens of the step.
        seed: seed of its random numbers, below 2^31.
    """

    prefix: tuple[int, ...]
    max_tokens: int
    seed: int


class ServedStep(NamedTuple):
    """A step that a server has drawn.

    Attributes:
        tokens: of the step, delimiter and end token included: ids, or code points of
            text.
        num_tokens: number of tokens of the step, as the server counts them.
        end: why it ended.
        has_end_token: whether its last token is a token that ends solutions.
        log_prob: log p of the step; NaN if the server did not report it.
        prompt_tokens: number of tokens of the prefix, as the server counts them.
        cached_tokens: how many of these were read from the server's cache.
        pieces: texts as which a text server has sent the step, each of one or more
            tokens; the last one may go beyond the step. Empty for ids.
        is_retokenized: whether the server, if it reads the step again, certainly reads
            it as other tokens than it has drawn.
    """

    tokens: tuple[int, ...]
    num_tokens: int
    end: End
    has_end_token: bool = False
    log_prob: float = math.nan
    prompt_tokens: int = 0
    cached_tokens: int = 0
    pieces: tuple[str, ...] = ()
    is_retokenized: bool = False


def check_step(step: ServedStep, request: StepRequest) -> None:
    """Refuse a step of ids that does not end as the server reports.

    Raises:
        ServerError: the step has no token and does not end the solution; or it ended
            before its token limit because the server's context is full.
    """
    if step.end == "delimiter" and not step.tokens:
        raise ServerError("The server's step ends at a string, but has no token.")
    if step.end == "limit" and len(step.tokens) < request.max_tokens:
        raise ServerError(
            f"The server cut a step short after {len(step.tokens)} of "
            f"{request.max_tokens} tokens, which follow {len(request.prefix)} others: "
            "its context is full. Start it with a larger context, or lower max_tokens."
        )


def as_text(points: tuple[int, ...]) -> str:
    """The text of code points."""
    return "".join(map(chr, points))


def as_points(text: str) -> tuple[int, ...]:
    """The code points of a text."""
    return tuple(map(ord, text))
