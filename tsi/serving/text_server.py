"""A server that takes only text, through a streamed completions endpoint.

Such a server removes a matched stop string from the text, and gives the same finish
reason as for an end token. Therefore no stop string is sent. The text is read as it is
written, and the connection is closed at the first delimiter, which makes the server
stop.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from tsi.errors import ServerError
from tsi.serving.choice import Choice
from tsi.serving.dialect import Call, Drawing
from tsi.serving.reading import field, show
from tsi.serving.step import End, ServedStep, StepRequest, as_points, as_text

PATH = "/v1/completions"
EXTENSIONS = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}
"""Fields that are not part of OpenAI's interface, and the controls that they set."""


class TextServer:
    """See the module docstring.

    Args:
        extensions: those of `EXTENSIONS` that are sent. The others are left out for a
            server that refuses fields which it does not know.
    """

    name = "text"
    takes_ids = False
    takes_lists = False
    copies = False
    keeps_copies = True

    def __init__(self, extensions: Iterable[str] = EXTENSIONS) -> None:
        self.extensions = tuple(extensions)

    @property
    def unknown_controls(self) -> tuple[str, ...]:
        """Controls whose fields are not sent."""
        return tuple(
            control
            for name, control in EXTENSIONS.items()
            if name not in self.extensions
        )

    def call(self, requests: Sequence[StepRequest], drawing: Drawing) -> Call:
        """See :class:`tsi.serving.dialect.Dialect`."""
        controls, (request,) = drawing.controls, requests
        body: dict[str, Any] = {
            "prompt": as_text(request.prefix),
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            "temperature": controls.temperature,
            "top_p": 1.0 if controls.top_p is None else controls.top_p,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "stream": True,
        }
        # Servers that know these fields have defaults.
        values = {
            "top_k": controls.top_k or 0,
            "min_p": controls.min_p or 0.0,
            "repeat_penalty": controls.repetition_penalty or 1.0,
        }
        body |= {name: values[name] for name in self.extensions}
        if drawing.model is not None:
            body["model"] = drawing.model
        longest = max(map(len, drawing.stops), default=1)

        def has_delimiter(events: list[Any]) -> bool:
            tail = text_of(events[-1])
            for event in events[-2::-1]:
                if len(tail) >= longest + len(text_of(events[-1])):
                    break
                tail = text_of(event) + tail
            return find_first(tail, drawing.stops)[1] is not None

        return Call(PATH, body, streamed=True, is_enough=has_delimiter)

    def steps(
        self, reply: Any, requests: Sequence[StepRequest], drawing: Drawing
    ) -> list[ServedStep]:
        """See :class:`tsi.serving.dialect.Dialect`."""
        sent = tuple(filter(None, map(text_of, reply)))
        text = join_surrogates("".join(sent))
        place, word = find_first(text, drawing.stops)
        if word is not None:
            points = as_points(text[: place + len(word)])
            # An event contains one or more tokens; the server's own count never
            # arrives.
            ended: End = "end" if word in drawing.stop_strings else "delimiter"
            return [ServedStep(points, len(sent), ended, pieces=sent)]
        reasons = [reason_of(event) for event in reply]
        ended = "limit" if "length" in reasons else "end"
        return [ServedStep(as_points(text), len(sent), ended, pieces=sent)]

    def log_probs_call(self, tokens: Sequence[int], model: str | None) -> Call | None:
        """None, since text servers do not name tokens."""
        return None

    def log_probs(self, reply: Any, tokens: Sequence[int]) -> list[float]:
        """Never called; see `log_probs_call`."""
        raise NotImplementedError

    def choice_call(
        self, tokens: Sequence[int], candidates: Sequence[int], model: str | None
    ) -> Call | None:
        """None, since text servers do not name tokens."""
        return None

    def read_choice(self, reply: Any, candidates: Sequence[int]) -> Choice:
        """Never called; see `choice_call`."""
        raise NotImplementedError


def text_of(event: Any) -> str:
    """The text of one event; empty for an event that only reports usage."""
    if not isinstance(event, dict) or not event.get("choices"):
        return ""
    text = field(event, "choices", 0, "text")
    if text is None or isinstance(text, str):
        return text or ""
    raise ServerError(f"The server's text is {show(text)}; it must be a text.")


def join_surrogates(text: str) -> str:
    """A text with surrogate pairs joined, also if they arrived in two events.

    JSON writes a character outside the basic plane as two surrogates. A surrogate
    without its partner becomes the replacement character.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def reason_of(event: Any) -> Any:
    """The finish reason of one event, or None."""
    if not isinstance(event, dict) or not event.get("choices"):
        return None
    choice = field(event, "choices", 0)
    return choice.get("finish_reason") if isinstance(choice, dict) else None


def find_first(text: str, words: Sequence[str]) -> tuple[int, str | None]:
    """Find the first of some strings in a text.

    Returns:
        The position at which it begins, and the string; the length of the text and
        None if there is none.
    """
    places = [(text.find(word), word) for word in words if word in text]
    return min(places, default=(len(text), None))
