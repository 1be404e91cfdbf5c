"""The protocol of one kind of server: requests to JSON, and JSON to steps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tsi.errors import ServerError
from tsi.serving.choice import Choice
from tsi.serving.reading import show
from tsi.serving.step import Controls, End, ServedStep, StepRequest


class Call(NamedTuple):
    """A request over HTTP.

    Attributes:
        path: begins with a slash.
        body: JSON.
        streamed: whether the reply is a stream of events.
        is_enough: function of the events so far: whether they are enough and the rest
            can be ignored.
    """

    path: str
    body: dict[str, Any]
    streamed: bool = False
    is_enough: Callable[[list[Any]], bool] | None = None


class Drawing(NamedTuple):
    """Settings that all steps of a run have in common.

    Attributes:
        model: name of the server's model, or None.
        controls: how tokens are drawn.
        delimiters: strings that end a step.
        stop_strings: strings that end the solution.
        end_ids: tokens that end the solution.
        log_probs: whether log-probabilities are needed.
    """

    model: str | None
    controls: Controls
    delimiters: tuple[str, ...]
    stop_strings: tuple[str, ...] = ()
    end_ids: tuple[int, ...] = ()
    log_probs: bool = False

    @property
    def stops(self) -> list[str]:
        """All strings at which a server stops."""
        return [*self.delimiters, *self.stop_strings]


def end_at(stop: Any, drawing: Drawing) -> End:
    """Why a step ended that the server stopped by itself.

    Args:
        stop: what the server reports: one of the strings at which it had to stop, an
            end token, or nothing.
        drawing: settings of the run.

    Raises:
        ServerError: it reports something else, such as an error.
    """
    if isinstance(stop, str):
        if stop in drawing.delimiters:
            return "delimiter"
        if stop not in drawing.stop_strings:
            raise ServerError(
                f"The server stopped a step at {show(stop)}, which is none of the "
                "strings that it was given."
            )
    return "end"


def control_fields(drawing: Drawing) -> dict[str, Any]:
    """Controls and ends as both vLLM and SGLang write them; all are sent explicitly."""
    controls = drawing.controls
    penalty = controls.repetition_penalty
    return {
        "stop": drawing.stops,
        "stop_token_ids": list(drawing.end_ids),
        "temperature": controls.temperature,
        # -1 means all tokens; newer versions of vLLM accept 0 as well.
        "top_k": -1 if controls.top_k is None else controls.top_k,
        "top_p": 1.0 if controls.top_p is None else controls.top_p,
        "min_p": controls.min_p or 0.0,
        "repetition_penalty": 1.0 if penalty is None else penalty,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "ignore_eos": False,
    }


@runtime_checkable
class Dialect(Protocol):
    """The requests and replies of one kind of server.

    Attributes:
        name: of the server.
        takes_ids: whether prefixes are token ids; else they are text.
        takes_lists: whether one request may hold several prefixes.
        copies: whether one request may be for several steps of one prefix.
        keeps_copies: whether the steps of copies stay in the server's cache.
    """

    name: str
    takes_ids: bool
    takes_lists: bool
    copies: bool
    keeps_copies: bool

    def call(self, requests: Sequence[StepRequest], drawing: Drawing) -> Call:
        """The request for steps.

        Args:
            requests: one request, or several with the same `max_tokens` if the server
                takes lists, or several with the same `max_tokens` and prefix if it
                makes copies. The first seed is used for all.
            drawing: settings of the run.
        """

    def steps(
        self, reply: Any, requests: Sequence[StepRequest], drawing: Drawing
    ) -> list[ServedStep]:
        """The steps of a reply, one for each request.

        Raises:
            ServerError: the reply is malformed.
        """

    def log_probs_call(self, tokens: Sequence[int], model: str | None) -> Call | None:
        """A request for the log-probabilities of given ids; None if not supported."""

    def log_probs(self, reply: Any, tokens: Sequence[int]) -> list[float]:
        """log p of each id from the second on, in the reply to `log_probs_call`."""

    def choice_call(
        self, tokens: Sequence[int], candidates: Sequence[int], model: str | None
    ) -> Call | None:
        """A request for the probabilities of candidates for the next token.

        Args:
            tokens: ids of the prefix.
            candidates: ids, at least two.
            model: name of the server's model, or None.

        Returns:
            None if the server does not take ids.
        """

    def read_choice(self, reply: Any, candidates: Sequence[int]) -> Choice:
        """The probabilities in the reply to `choice_call`.

        Raises:
            ServerError: the reply is malformed, or names none of the candidates.
        """
