"""Read steps from the replies of llama.cpp's server: whole, or as events."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tsi.errors import ServerError
from tsi.serving.dialect import Drawing, end_at
from tsi.serving.reading import (
    count,
    field,
    integer,
    log_probability,
    number,
    show,
    string,
    token_ids,
)
from tsi.serving.step import End, ServedStep, StepRequest


class HiddenTokensError(ServerError):
    """A streamed step lacks tokens that are a part of a character."""


class StreamedStep(NamedTuple):
    """A step as far as a stream reports it.

    Attributes:
        step: with the tokens that the stream has, and the sum of their log p.
        known: id and log p of each of these tokens, by position.
        hidden: number of tokens that the stream does not contain.
    """

    step: ServedStep
    known: dict[int, tuple[int, float]]
    hidden: int


def streamed_step(
    events: Sequence[Any],
    index: int,
    num_steps: int,
    request: StepRequest,
    drawing: Drawing,
) -> StreamedStep:
    """One step of a stream that contains several steps.

    Args:
        events: events of the stream.
        index: index of the step.
        num_steps: number of steps in the stream.
        request: request of the step.
        drawing: of the run.

    Raises:
        ServerError: the events are malformed.
    """
    own_events = events_of(events, index, num_steps)
    if not own_events or field(own_events[-1], "stop") is not True:
        raise ServerError("The server's reply does not say how a step ended.")
    last = own_events[-1]
    known_tokens = streamed_tokens(own_events, request.max_tokens)
    tokens = tuple(id for id, _ in known_tokens.values())
    step = step_of(last, tokens, drawing)
    return StreamedStep(
        step._replace(log_prob=sum(log_prob for _, log_prob in known_tokens.values())),
        known_tokens,
        integer(field(last, "tokens_predicted"), "count") - len(known_tokens),
    )


def events_of(events: Sequence[Any], index: int, num_steps: int) -> list[Any]:
    """The events of one step of a stream that contains several steps."""
    return [e for e in events if num_steps == 1 or field(e, "index") == index]


def streamed_tokens(
    events: Sequence[Any], max_tokens: int
) -> dict[int, tuple[int, float]]:
    """The id and log p of each token of a step that a stream contains, by position.

    Args:
        events: events of the step.
        max_tokens: the maximum number of tokens that a step may have.

    Raises:
        ServerError: the events are malformed.
    """
    known_tokens: dict[int, tuple[int, float]] = {}
    for event in events[:-1]:
        ids = token_ids(field(event, "tokens"), max_tokens)
        probabilities = event.get("completion_probabilities", [])
        if not isinstance(probabilities, list):
            raise ServerError(
                "The server's log-probabilities must be a list, not "
                f"{show(probabilities)}."
            )
        first = integer(field(event, "tokens_predicted"), "count") - len(ids)
        for place, (id, item) in enumerate(
            itertools.zip_longest(ids, probabilities[: len(ids)]), first
        ):
            # A server without log-probabilities omits the field.
            known_tokens[place] = (
                id,
                math.nan if item is None else log_prob_for(item, id),
            )
    return known_tokens


def log_prob_for(item: Any, id: int) -> float:
    """The log-probability of an entry, which must be for this token."""
    if integer(field(item, "id"), "token id") != id:
        raise ServerError(
            "The server's log-probabilities are of other tokens than it drew."
        )
    return log_prob_of(item)


def log_prob_of(item: Any) -> float:
    """The log-probability of an entry, which contains it or the probability."""
    if isinstance(item, dict) and "prob" in item:
        probability = number(item["prob"], "probability")
        if not 0 <= probability <= 1 + 1e-3:
            raise ServerError(f"The server's probability is {probability}.")
        return min(math.log(probability), 0.0) if probability > 0 else -math.inf
    value = log_probability(field(item, "logprob"), "log-probability")
    return value if value > -1e38 else -math.inf


def step_of(item: Any, tokens: tuple[int, ...], drawing: Drawing) -> ServedStep:
    """The step of a reply, or of the last event of a streamed one."""
    kind = string(field(item, "stop_type"), "stop_type", 20)
    word = string(field(item, "stopping_word"), "stopping_word")
    end: End = "limit"
    if kind == "eos":
        end = "end"
    elif kind == "word":
        end = end_at(word, drawing)
    elif item.get("truncated") is True:
        raise ServerError(
            "The server's context is full: it cut a step short. Start it with a larger "
            "context per slot (-c is divided by --parallel), or lower max_tokens."
        )
    return ServedStep(
        tokens,
        len(tokens),
        end,
        kind == "eos",
        prompt_tokens=integer(field(item, "tokens_evaluated"), "count"),
        cached_tokens=count(item, "timings", "cache_n"),
    )
