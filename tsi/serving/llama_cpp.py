"""llama.cpp's own server, through its native endpoint.

The OpenAI-compatible endpoint does not say which string has stopped a step, and omits
the log-probabilities of that string. The native endpoint gives all ids and the reason.
Without streaming, its reply also omits the log-probabilities of the string that has
stopped the step, so the reply is streamed where they are needed. No reply has the
log-probability of a token after which a character is incomplete;
:mod:`tsi.serving.hidden_tokens` finds these. The server does not give log-probabilities
of a prompt.
"""

from collections.abc import Sequence
from typing import Any

from tsi.errors import ServerError
from tsi.serving.choice import Choice, choice_of
from tsi.serving.dialect import Call, Drawing
from tsi.serving.llama_replies import (
    HiddenTokensError,
    log_prob_of,
    step_of,
    streamed_step,
)
from tsi.serving.reading import choices, count, field, integer, token_ids
from tsi.serving.step import ServedStep, StepRequest

PATH = "/completion"
OFF: dict[str, Any] = {
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "dry_multiplier": 0.0,
    "mirostat": 0,
    "logit_bias": [],
    "ignore_eos": False,
    "n_keep": -1,
}
"""Controls of this server that this package never uses."""
BIAS = 100.0
"""Added to the logits of candidates, which become the most likely tokens; the ratio of
their probabilities does not change. A larger number would lose digits of float32."""

FIELDS = [
    "index",
    "stop",
    "tokens",
    "tokens_predicted",
    "tokens_evaluated",
    "truncated",
    "stop_type",
    "stopping_word",
    "timings",
    "completion_probabilities",
]
"""Requested fields of a reply; the other fields repeat the request."""


class LlamaCpp:
    """See the module docstring."""

    name = "llama.cpp"
    takes_ids = True
    takes_lists = True
    copies = True
    keeps_copies = False

    def call(self, requests: Sequence[StepRequest], drawing: Drawing) -> Call:
        """See :class:`tsi.serving.dialect.Dialect`."""
        controls, first = drawing.controls, requests[0]
        has_one_prompt = len(requests) == 1 or all(
            r.prefix == first.prefix for r in requests
        )
        penalty = controls.repetition_penalty
        prompts = [list(request.prefix) for request in requests]
        body = OFF | {
            "prompt": prompts[0] if has_one_prompt else prompts,
            "n_predict": first.max_tokens,
            # The prompts of a list would all get the same random numbers.
            "seed": first.seed if has_one_prompt else -1,
            "stop": drawing.stops,
            "temperature": controls.temperature,
            "top_k": controls.top_k or 0,
            "top_p": 1.0 if controls.top_p is None else controls.top_p,
            "min_p": controls.min_p or 0.0,
            "repeat_penalty": 1.0 if penalty is None else penalty,
            # The penalty sees the whole prefix, as in this package's own engine.
            "repeat_last_n": 0 if penalty is None else 2**31 - 1,
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "cache_prompt": True,
            "return_tokens": True,
            "response_fields": FIELDS,
        }
        if has_one_prompt and len(requests) > 1:
            body["n"] = len(requests)
        if drawing.log_probs:
            body |= {
                "n_probs": 1,
                "post_sampling_probs": not controls.is_plain,
                "stream": True,
            }
        return Call(PATH, body, streamed=drawing.log_probs)

    def steps(
        self, reply: Any, requests: Sequence[StepRequest], drawing: Drawing
    ) -> list[ServedStep]:
        """See :class:`tsi.serving.dialect.Dialect`."""
        if drawing.log_probs:
            return self._read_stream(reply, requests, drawing)
        items = reply if isinstance(reply, list) else [reply]
        if len(items) != len(requests):
            raise ServerError(
                f"The server sent {len(items)} steps; {len(requests)} were requested."
            )
        if len(items) > 1:
            items = choices({"steps": items}, "steps", len(requests))
        return [
            step_of(item, token_ids(field(item, "tokens"), r.max_tokens), drawing)
            for item, r in zip(items, requests, strict=True)
        ]

    def log_probs_call(self, tokens: Sequence[int], model: str | None) -> Call | None:
        """None: this server does not give them."""
        return None

    def log_probs(self, reply: Any, tokens: Sequence[int]) -> list[float]:
        """Never called; see `log_probs_call`."""
        raise NotImplementedError

    def choice_call(
        self, tokens: Sequence[int], candidates: Sequence[int], model: str | None
    ) -> Call | None:
        """See :class:`tsi.serving.dialect.Dialect`.

        The server lists only the most likely tokens, so the candidates get a bias.
        """
        return likely_tokens(tokens, candidates, len(candidates), with_bias=True)

    def read_choice(self, reply: Any, candidates: Sequence[int]) -> Choice:
        """See :class:`tsi.serving.dialect.Dialect`."""
        entries = field(reply, "completion_probabilities", 0, "top_probs")
        if not isinstance(entries, list) or len(entries) > len(candidates):
            raise ServerError(
                "The server's list of likely tokens is missing, or longer than "
                "requested."
            )
        named = {
            integer(field(item, "id"), "token id"): log_prob_of(item)
            for item in entries
        }
        return choice_of(
            named,
            candidates,
            integer(field(reply, "tokens_evaluated"), "count"),
            count(reply, "timings", "cache_n"),
        )

    def likely_tokens_call(self, tokens: Sequence[int], token: int, count: int) -> Call:
        """A request for the log-probabilities of the most likely next tokens.

        Args:
            tokens: ids of the prefix.
            token: the id that is drawn, because of a bias that does not change the
                list.
            count: length of the list.
        """
        return likely_tokens(tokens, [token], count, with_bias=False)

    def _read_stream(
        self, events: list[Any], requests: Sequence[StepRequest], drawing: Drawing
    ) -> list[ServedStep]:
        steps = []
        for index, request in enumerate(requests):
            streamed = streamed_step(events, index, len(requests), request, drawing)
            if streamed.hidden:
                raise HiddenTokensError(
                    "llama.cpp's server left out tokens of a character that takes "
                    "several of them."
                )
            steps.append(streamed.step)
        return steps


def likely_tokens(
    tokens: Sequence[int], biased: Sequence[int], count: int, *, with_bias: bool
) -> Call:
    """A request for the probabilities of the most likely next tokens.

    Args:
        tokens: ids of the prefix.
        biased: ids that get a bias; one of them is drawn.
        count: length of the list.
        with_bias: whether the list has probabilities after the bias; else the model's
            own log-probabilities.
    """
    body = OFF | {
        "prompt": list(tokens),
        "n_predict": 1,
        "seed": 0,
        "temperature": 1.0,
        "samplers": ["temperature"],
        "logit_bias": [[id, BIAS] for id in biased],
        "n_probs": count,
        "post_sampling_probs": with_bias,
        "cache_prompt": True,
    }
    return Call(PATH, body)
