"""Responses in the shape of OpenAI's chat completions, whole or as events."""

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from tsi.experiments.serving.winner import Winner

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": computing\n\n"


class Usage(NamedTuple):
    """Tokens of the prompt and of the text that is returned.

    The tokens of all particles are in the extension's cost.
    """

    prompt_tokens: int
    completion_tokens: int

    def fields(self) -> dict[str, int]:
        """The JSON object, with the sum."""
        return {**self._asdict(), "total_tokens": sum(self)}


class Completion(NamedTuple):
    """A response.

    Attributes:
        id: of the request.
        model: its name.
        created: seconds since 1970.
        prompt_tokens: of the prompt.
    """

    id: str
    model: str
    created: int
    prompt_tokens: int

    def response(self, winner: Winner, extension: dict[str, Any]) -> dict[str, Any]:
        """The response to a request without ``stream``."""
        message = {"role": "assistant", "content": winner.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason(winner),
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": Usage(self.prompt_tokens, winner.tokens).fields(),
            "tsi": extension,
        }

    def first_event(self) -> bytes:
        """The first event, which is sent before anything is computed."""
        return self._event(self._choice({"role": "assistant", "content": ""}))

    def events(
        self, winner: Winner, extension: dict[str, Any], *, include_usage: bool
    ) -> Iterator[bytes]:
        """The events with the text, one for each step, and those after it.

        The last choice has the extension and the usage. With `include_usage`, an event
        without choices repeats the usage, as OpenAI's clients expect.
        """
        for piece in winner.pieces:
            if piece:
                yield self._event(self._choice({"content": piece}))
        usage = Usage(self.prompt_tokens, winner.tokens).fields()
        last = self._choice({}, finish_reason(winner))
        yield self._event({**last, "usage": usage, "tsi": extension})
        if include_usage:
            yield self._event({"choices": [], "usage": usage})
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _choice(
        self, delta: dict[str, str], reason: str | None = None
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": reason,
        }
        return {"choices": [choice]}

    def _event(self, fields: dict[str, Any]) -> bytes:
        return event({**self._head("chat.completion.chunk"), **fields})


def finish_reason(winner: Winner) -> str:
    """``length`` for a text that ends at a limit, and otherwise ``stop``."""
    return "length" if winner.is_cut else "stop"


def event(fields: dict[str, Any]) -> bytes:
    """A server-sent event of a JSON object."""
    return b"data: " + encode_json(fields) + b"\n\n"


def encode_json(fields: dict[str, Any]) -> bytes:
    """JSON on one line.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(fields, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "replace")


def model_list(model: str, created: int) -> dict[str, Any]:
    """The response to a request for the list of models."""
    return {"object": "list", "data": [model_card(model, created)]}


def model_card(model: str, created: int) -> dict[str, Any]:
    """The description of the model."""
    return {"id": model, "object": "model", "created": created, "owned_by": "tsi"}


def unix_time() -> int:
    """Seconds since 1970."""
    return int(time.time())
