"""vLLM, and servers with the same extensions of the completions endpoint.

Ids are sent as the prompt and returned with ``return_token_ids``. ``stop_reason`` gives
the string that has stopped a step, and is empty for an end token. ``prompt_logprobs``
requests the log-probabilities of a prompt.
"""

from collections.abc import Sequence
from typing import Any

from tsi.errors import ServerError
from tsi.serving.choice import Choice, choice_of
from tsi.serving.dialect import Call, Drawing, control_fields, end_at
from tsi.serving.reading import (
    choices,
    count,
    field,
    integer,
    log_probability,
    show,
    token_ids,
)
from tsi.serving.step import End, ServedStep, StepRequest

PATH = "/v1/completions"
MAX_NAMED = 20
"""Log-probabilities per token that vLLM gives unless it is started for more."""


class Vllm:
    """See the module docstring."""

    name = "vLLM"
    takes_ids = True
    takes_lists = True
    copies = True
    keeps_copies = True

    def call(self, requests: Sequence[StepRequest], drawing: Drawing) -> Call:
        """See :class:`tsi.serving.dialect.Dialect`."""
        first = requests[0]
        has_one_prompt = all(request.prefix == first.prefix for request in requests)
        prompts = [list(request.prefix) for request in requests]
        body: dict[str, Any] = {
            "model": drawing.model,
            "prompt": prompts[0] if has_one_prompt else prompts,
            "max_tokens": first.max_tokens,
            "n": len(requests) if has_one_prompt else 1,
            **control_fields(drawing),
            "include_stop_str_in_output": True,
            "min_tokens": 0,
            "add_special_tokens": False,
            "return_token_ids": True,
        }
        if has_one_prompt:
            # The prompts of a list would all get the same random numbers.
            body["seed"] = first.seed
        if drawing.log_probs:
            body["logprobs"] = 0
        return Call(PATH, body)

    def steps(
        self, reply: Any, requests: Sequence[StepRequest], drawing: Drawing
    ) -> list[ServedStep]:
        """See :class:`tsi.serving.dialect.Dialect`."""
        cached = count(reply, "usage", "prompt_tokens_details", "cached_tokens")
        # The server counts the prompt of copies once; for a list it gives only the sum.
        if len({request.prefix for request in requests}) > 1:
            cached //= len(requests)
        steps = []
        for item, request in zip(
            choices(reply, "choices", len(requests)), requests, strict=True
        ):
            tokens = token_ids(field(item, "token_ids"), request.max_tokens)
            log_prob = float("nan")
            if drawing.log_probs:
                numbers = field(item, "logprobs", "token_logprobs")
                if not isinstance(numbers, list) or len(numbers) != len(tokens):
                    raise ServerError(
                        "The server's log-probabilities do not have one number for "
                        "each token."
                    )
                log_prob = sum(log_probability(x, "log-probability") for x in numbers)
            end = end_of(item, drawing)
            steps.append(
                ServedStep(
                    tokens,
                    len(tokens),
                    end,
                    end == "end" and not isinstance(item["stop_reason"], str),
                    log_prob,
                    len(request.prefix),
                    cached,
                )
            )
        return steps

    def log_probs_call(self, tokens: Sequence[int], model: str | None) -> Call | None:
        """See :class:`tsi.serving.dialect.Dialect`."""
        body = {
            "model": model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
        }
        return Call(PATH, body)

    def log_probs(self, reply: Any, tokens: Sequence[int]) -> list[float]:
        """See :class:`tsi.serving.dialect.Dialect`."""
        by_place = field(reply, "choices", 0, "prompt_logprobs")
        if not isinstance(by_place, list) or len(by_place) != len(tokens):
            raise ServerError(
                "The server's log-probabilities of a prompt do not have one entry for "
                "each token."
            )
        return [
            log_probability(field(entry, str(id), "logprob"), "log-probability")
            for entry, id in zip(by_place[1:], tokens[1:], strict=True)
        ]

    def choice_call(
        self, tokens: Sequence[int], candidates: Sequence[int], model: str | None
    ) -> Call | None:
        """See :class:`tsi.serving.dialect.Dialect`.

        Newer versions give the log-probabilities of the requested ids. Older ones give
        those of the most likely tokens and of the drawn token, which is one of the
        candidates.
        """
        body = {
            "model": model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "seed": 0,
            "temperature": 1.0,
            "top_k": -1,
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "allowed_token_ids": list(candidates),
            "logprob_token_ids": list(candidates),
            "logprobs": MAX_NAMED,
            "return_tokens_as_token_ids": True,
            "add_special_tokens": False,
        }
        return Call(PATH, body)

    def read_choice(self, reply: Any, candidates: Sequence[int]) -> Choice:
        """See :class:`tsi.serving.dialect.Dialect`."""
        log_probs = field(reply, "choices", 0, "logprobs", "top_logprobs", 0)
        max_entries = MAX_NAMED + len(candidates) + 1
        if not isinstance(log_probs, dict) or len(log_probs) > max_entries:
            raise ServerError(
                "The server's log-probabilities of a next token must be an object of "
                f"at most {max_entries} entries."
            )
        named = {
            id_of(name): log_probability(value, "log-probability")
            for name, value in log_probs.items()
        }
        return choice_of(
            named,
            candidates,
            integer(field(reply, "usage", "prompt_tokens"), "count"),
            count(reply, "usage", "prompt_tokens_details", "cached_tokens"),
        )


def id_of(name: Any) -> int:
    """The id of a token in the form ``token_id:ID``.

    Raises:
        ServerError: it has another form.
    """
    prefix, _, digits = str(name).partition(":")
    if prefix != "token_id" or not (digits.isascii() and digits.isdigit()):
        raise ServerError(
            f"The server sent the token {name!r:.40} in place of its id, as in "
            "token_id:42; it is another kind of server, or an older version."
        )
    return integer(int(digits[:12]), "token id")


def end_of(item: Any, drawing: Drawing) -> End:
    """Why a choice ended, by its `finish_reason` and `stop_reason`."""
    reason = field(item, "finish_reason")
    if reason == "length":
        return "limit"
    if reason != "stop":
        raise ServerError(
            f"The server ended a step with the reason {show(reason)}; it must be "
            "'stop' or 'length'."
        )
    return end_at(field(item, "stop_reason"), drawing)
