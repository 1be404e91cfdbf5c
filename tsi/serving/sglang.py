"""SGLang, through its native endpoint ``/generate``, with any of its backends.

The reply has ids, the matched stop string or token, and log-probabilities, also of the
prompt from a given position on. Seeds have an effect if the server runs with
``--enable-deterministic-inference``.
"""

from collections.abc import Sequence
from typing import Any

from tsi.errors import ServerError
from tsi.serving.choice import Choice, choice_of
from tsi.serving.dialect import Call, Drawing, control_fields, end_at
from tsi.serving.reading import (
    count,
    field,
    integer,
    log_probability,
    string,
    token_ids,
)
from tsi.serving.step import End, ServedStep, StepRequest

PATH = "/generate"


class Sglang:
    """See the module docstring."""

    name = "SGLang"
    takes_ids = True
    takes_lists = True
    copies = True
    keeps_copies = True

    def call(self, requests: Sequence[StepRequest], drawing: Drawing) -> Call:
        """See :class:`tsi.serving.dialect.Dialect`."""
        first = requests[0]
        has_one_prompt = all(request.prefix == first.prefix for request in requests)
        prompts = [list(request.prefix) for request in requests]
        settings: dict[str, Any] = {
            "max_new_tokens": first.max_tokens,
            "n": len(requests) if has_one_prompt else 1,
            **control_fields(drawing),
            "no_stop_trim": True,
            "min_new_tokens": 0,
        }
        if has_one_prompt:
            settings["sampling_seed"] = first.seed
        body = {
            "input_ids": prompts[0] if has_one_prompt else prompts,
            "sampling_params": settings,
            "return_logprob": drawing.log_probs,
            # Log-probabilities of generated tokens only.
            "logprob_start_len": -1,
        }
        return Call(PATH, body)

    def steps(
        self, reply: Any, requests: Sequence[StepRequest], drawing: Drawing
    ) -> list[ServedStep]:
        """See :class:`tsi.serving.dialect.Dialect`."""
        items = reply if isinstance(reply, list) else [reply]
        if len(items) != len(requests):
            raise ServerError(
                f"The server sent {len(items)} steps; {len(requests)} were requested."
            )
        return [
            self._step(item, request, drawing)
            for item, request in zip(items, requests, strict=True)
        ]

    def _step(self, item: Any, request: StepRequest, drawing: Drawing) -> ServedStep:
        meta = field(item, "meta_info")
        tokens = token_ids(field(item, "output_ids"), request.max_tokens)
        log_prob = float("nan")
        if drawing.log_probs:
            log_prob = sum(pair_log_probs(field(meta, "output_token_logprobs"), tokens))
        reason = field(meta, "finish_reason")
        end = end_of(reason, drawing)
        if end == "limit" and tokens and tokens[-1] in drawing.end_ids:
            # This server checks the token limit before the stop condition.
            end = "end"
        return ServedStep(
            tokens,
            len(tokens),
            end,
            end == "end" and not isinstance(reason.get("matched"), str),
            log_prob,
            integer(field(meta, "prompt_tokens"), "count"),
            count(meta, "cached_tokens"),
        )

    def log_probs_call(self, tokens: Sequence[int], model: str | None) -> Call | None:
        """See :class:`tsi.serving.dialect.Dialect`."""
        body = {
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        return Call(PATH, body)

    def log_probs(self, reply: Any, tokens: Sequence[int]) -> list[float]:
        """See :class:`tsi.serving.dialect.Dialect`."""
        entries = field(reply, "meta_info", "input_token_logprobs")
        if isinstance(entries, list) and len(entries) == len(tokens):
            entries = entries[1:]
        return pair_log_probs(entries, tuple(tokens)[1:])

    def choice_call(
        self, tokens: Sequence[int], candidates: Sequence[int], model: str | None
    ) -> Call | None:
        """See :class:`tsi.serving.dialect.Dialect`."""
        body = {
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": -1,
            "token_ids_logprob": list(candidates),
        }
        return Call(PATH, body)

    def read_choice(self, reply: Any, candidates: Sequence[int]) -> Choice:
        """See :class:`tsi.serving.dialect.Dialect`."""
        meta = field(reply, "meta_info")
        entries = field(meta, "output_token_ids_logprobs", 0)
        numbers = pair_log_probs(entries, tuple(candidates))
        return choice_of(
            dict(zip(candidates, numbers, strict=True)),
            candidates,
            integer(field(meta, "prompt_tokens"), "count"),
            count(meta, "cached_tokens"),
        )


def pair_log_probs(entries: Any, tokens: Sequence[int]) -> list[float]:
    """The log-probabilities of entries [log-probability, id, text], one for each id."""
    if not isinstance(entries, list) or len(entries) != len(tokens):
        raise ServerError(
            "The server's log-probabilities do not have one entry for each token."
        )
    if any(field(e, 1) != id for e, id in zip(entries, tokens, strict=True)):
        raise ServerError(
            "The server's log-probabilities are of other tokens than were drawn."
        )
    return [log_probability(field(entry, 0), "log-probability") for entry in entries]


def end_of(reason: Any, drawing: Drawing) -> End:
    """Why a step ended, by its finish reason."""
    kind = string(field(reason, "type"), "finish reason", 40)
    if kind == "length":
        return "limit"
    if kind != "stop":
        raise ServerError(
            f"The server ended a step with the reason {kind!r}; it must be 'stop' or "
            "'length'."
        )
    return end_at(reason.get("matched"), drawing)
