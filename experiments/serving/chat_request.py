"""A request for a chat completion: its fields, checked against what is served.

A field that this server lacks is refused if it would change the answer, with a sentence
that names it. Values of such a field that change nothing are accepted, since clients
send them by default. Unknown fields are ignored, as by other servers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.plans.methods import get_method
from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.conversation import Conversation
from tsi.experiments.serving.fields import boolean, integer, name_type, number, string
from tsi.experiments.serving.messages import parse_messages

MAX_SEED = 2**32 - 1
MAX_TEMPERATURE = 2.0
MAX_ID = 200

OWN_FIELDS = ("method", "budget", "genealogy", "problem_id")
"""Fields of the object ``tsi``."""

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "web_search_options": (),
    "echo": (False,),
    "suffix": (),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
}
"""Fields that are refused, and their values that change nothing. Null is another."""

POLICY_FIELDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "top_p": ("--top-p", (1,)),
    "top_k": ("--top-k", (0, -1)),
    "min_p": ("--min-p", (0,)),
    "repetition_penalty": ("--repetition-penalty", (1,)),
}
"""Fields of the policy: the option that sets each, and values that mean no option."""


class Offer(NamedTuple):
    """The model, methods and limits that a server offers.

    Attributes:
        model: the name of the model.
        method, budget: of requests that name none.
        max_budget: the largest.
        policy: the values of `POLICY_FIELDS` with which the policy was loaded.
    """

    model: str
    method: str
    budget: int
    max_budget: int
    policy: Mapping[str, Any] = {}


class ChatRequest(NamedTuple):
    """A request for a chat completion.

    Attributes:
        conversation: the question, and what was said before it.
        method, budget: the sampler and its N.
        seed: None if the server draws one.
        problem_id: with the seed, determines the random numbers; None for the default.
        temperature: of the policy; None for the server's.
        max_tokens: the longest text; None for the server's limit.
        stream: whether the text is sent as events.
        include_usage: whether an event with the usage follows the text.
        genealogy: whether the response has all particles and ancestors.
    """

    conversation: Conversation
    method: str
    budget: int
    seed: int | None
    problem_id: str | None
    temperature: float | None
    max_tokens: int | None
    stream: bool
    include_usage: bool
    genealogy: bool


def parse_request(fields: Mapping[str, Any], offer: Offer) -> ChatRequest:
    """Check the fields of a request.

    Raises:
        ApiError: one of them is refused.
    """
    _check_model(fields, offer)
    _check_unsupported(fields, offer)
    extension = _own_fields(fields)
    method = string(extension, "method", prefix="tsi.") or offer.method
    budget = integer(extension, "budget", 1, offer.max_budget, prefix="tsi.")
    if budget is None:
        budget = offer.budget
    _check_method(method, budget)
    problem_id = string(extension, "problem_id", prefix="tsi.")
    if problem_id is not None and not 0 < len(problem_id) <= MAX_ID:
        raise ApiError(
            f"tsi.problem_id must have 1 to {MAX_ID} characters.",
            param="tsi.problem_id",
        )
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise ApiError("stream_options must be an object.", param="stream_options")
    limits = [
        integer(fields, name, 1, 2**31 - 1)
        for name in ("max_completion_tokens", "max_tokens")
    ]
    return ChatRequest(
        conversation=parse_messages(fields.get("messages")),
        method=method,
        budget=budget,
        seed=integer(fields, "seed", 0, MAX_SEED),
        problem_id=problem_id,
        temperature=_check_temperature(
            method, number(fields, "temperature", 0.0, MAX_TEMPERATURE)
        ),
        max_tokens=min((limit for limit in limits if limit), default=None),
        stream=boolean(fields, "stream"),
        include_usage=boolean(options or {}, "include_usage"),
        genealogy=boolean(extension, "genealogy", prefix="tsi."),
    )


def _check_model(fields: Mapping[str, Any], offer: Offer) -> None:
    model = string(fields, "model")
    if model is None:
        raise ApiError(
            f"The request names no model; this server has {offer.model!r}.",
            param="model",
        )
    if model != offer.model:
        raise ApiError(
            f"There is no model {model[:100]!r}; this server has {offer.model!r}.",
            404,
            param="model",
            code="model_not_found",
        )


def _check_unsupported(fields: Mapping[str, Any], offer: Offer) -> None:
    for name, accepted in WITHOUT_EFFECT.items():
        value = fields.get(name)
        if value is not None and not any(_is_same(value, other) for other in accepted):
            raise ApiError(
                f"{name} is not supported by this server with this value; leave it "
                "out.",
                param=name,
                code="unsupported_parameter",
            )
    for name, (option, neutral) in POLICY_FIELDS.items():
        value, served = fields.get(name), offer.policy.get(name)
        accepted = neutral if served is None else (served,)
        if value is not None and not any(_is_same(value, other) for other in accepted):
            raise ApiError(
                f"{name} is set when the server is started ({option}) and is "
                f"{'off' if served is None else served}; leave it out.",
                param=name,
                code="unsupported_parameter",
            )


def _is_same(value: Any, other: Any) -> bool:
    """Equality of JSON values, in which true is not 1."""
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _own_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object ``tsi`` of a request.

    Raises:
        ApiError: it is not an object or has an unknown field, which may be misspelled.
    """
    extension = fields.get("tsi")
    if extension is None:
        return {}
    if not isinstance(extension, dict):
        raise ApiError(
            f"tsi must be an object, not {name_type(extension)}.", param="tsi"
        )
    for name in extension:
        if name not in OWN_FIELDS:
            excerpt = ascii(name[:40])
            raise ApiError(
                f"tsi has no field {excerpt}; its fields are {', '.join(OWN_FIELDS)}.",
                param="tsi",
            )
    return extension


def _check_method(name: str, budget: int) -> None:
    try:
        method = get_method(name[:MAX_ID])
    except (ConfigurationError, UnknownNameError) as error:
        raise ApiError(str(error), param="tsi.method") from None
    if (method.temperature or 0.0) > MAX_TEMPERATURE:
        raise ApiError(
            f"The temperature of {name} is above {MAX_TEMPERATURE:g}.",
            param="tsi.method",
        )
    if budget < method.min_particles:
        raise ApiError(
            f"The method {name} needs a budget of at least {method.min_particles}.",
            param="tsi.budget",
        )


def _check_temperature(method: str, temperature: float | None) -> float | None:
    """The temperature of a request, unless its method fixes another."""
    fixed = get_method(method).temperature
    if temperature is not None and fixed not in (None, temperature):
        raise ApiError(
            f"The method {method} has the temperature {fixed:g}; leave temperature "
            "out, or choose another method.",
            param="temperature",
        )
    return temperature
