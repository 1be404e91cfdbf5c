"""Read the replies of a server over HTTP, which are not trusted."""

import contextlib
import datetime
import email.utils
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from tsi.errors import ServerError
from tsi.serving.address import KEY_VARIABLE

MAX_EXCERPT = 300
"""Characters of a server's own message that an error repeats."""
MAX_LINE = 2**23
"""Bytes of one event of a stream; llama.cpp's last event repeats the prompt."""


class TransientError(ServerError):
    """A failure that may be temporary.

    Args:
        message: of the error.
        pause: seconds that the server asks the client to wait; None if not given.
        status: of the reply; 0 if there is none.
    """

    def __init__(
        self, message: str, pause: float | None = None, status: int = 0
    ) -> None:
        super().__init__(message)
        self.pause, self.status = pause, status

    @property
    def is_permanent(self) -> bool:
        """Whether a server without the requested feature may answer like this.

        Some answer an unknown path with a web page, and an unknown field with a
        non-standard error.
        """
        return self.status in (200, 500, 501)


async def ask_for(ask: Callable[..., Awaitable[Any]]) -> Any:
    """The answer to a request for something that a server may lack.

    Args:
        ask: sends the request; takes `patient`, see `tsi.serving.client.Client.post`.

    Raises:
        TransientError: the server is busy or away, so that this cannot be known.
        ServerError: it refuses, or has failed as a server does that lacks what was
            asked for (`TransientError.is_permanent`).
    """
    for patient in (False, True):
        try:
            return await ask(patient=patient)
        except TransientError as error:
            if error.is_permanent:
                raise ServerError(str(error)) from error
            if patient:
                raise
    raise AssertionError


async def read_body(reply: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body of a reply.

    Raises:
        ServerError: it has more than `max_bytes` bytes.
    """
    pieces, size = [], 0
    async for piece in reply.content.iter_chunked(2**16):
        pieces.append(piece)
        size += len(piece)
        check_size(size, max_bytes, reply)
    return b"".join(pieces)


async def read_events(
    reply: aiohttp.ClientResponse,
    is_enough: Callable[[list[Any]], bool],
    max_bytes: int,
) -> list[Any]:
    """The events of a streamed reply.

    Args:
        reply: of the server.
        is_enough: whether the events so far are enough, so that the rest is not read.
        max_bytes: the maximum number of bytes of the stream.

    Raises:
        TransientError: the stream ends too early, or with an error that may pass.
        ServerError: it is too long, or ends with another error.
    """
    events: list[Any] = []
    size, url = 0, str(reply.url)
    try:
        async for line in reply.content:
            size += len(line)
            check_size(size, max_bytes, reply)
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return events
            event = parse_json(data, url)
            if isinstance(event, dict) and event.get("error"):
                raise error_of_event(event["error"], url)
            events.append(event)
            if is_enough(events):
                return events
    except (ValueError, aiohttp.http_exceptions.LineTooLong) as error:
        raise ServerError(
            f"{url} sent an event of more than {MAX_LINE:,} bytes, which is not a "
            "reply of an inference server."
        ) from error
    if not (events and is_last(events[-1])):
        raise TransientError(f"The reply of {url} was cut short.")
    return events


def error_of_event(error: Any, url: str) -> ServerError:
    """The error that a server reports instead of an event."""
    message = own_message(json.dumps(error).encode())
    code = error.get("code") if isinstance(error, dict) else None
    passes = not isinstance(code, int) or code >= 500 or code == 429
    kind = TransientError if passes else ServerError
    return kind(f"{url} failed in the middle of a reply: {message}")


async def refuse(reply: aiohttp.ClientResponse) -> None:
    """Raise the error of a status that is not 200."""
    message = own_message(await reply.content.read(2**16))
    detail = f": {message}" if message else "."
    where, status = str(reply.url), reply.status
    if status in (401, 403):
        raise ServerError(
            f"{where} wants a key (status {status}){detail} Put the right one into the "
            f"environment variable {KEY_VARIABLE}."
        )
    if status in (408, 425, 429) or status >= 500:
        headers = reply.headers
        pause = seconds_of(headers.get("Retry-After"), headers.get("Date"))
        raise TransientError(
            f"{where} failed with status {status}{detail}", pause, status
        )
    if 300 <= status < 400:
        raise ServerError(
            f"{where} redirects (status {status}); give the address that it leads to."
        )
    raise ServerError(f"{where} refused the request with status {status}{detail}")


def check_size(size: int, max_bytes: int, reply: aiohttp.ClientResponse) -> None:
    """Refuse a reply that is too long.

    Raises:
        ServerError: see above.
    """
    if size > max_bytes:
        raise ServerError(
            f"The reply of {reply.url} is longer than {max_bytes:,} bytes; this is not "
            "a reply of an inference server."
        )


def parse_json(data: bytes, url: str) -> Any:
    """A reply as JSON.

    Raises:
        TransientError: it is not JSON, for example because it was cut short.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TransientError(
            f"The reply of {url} is not JSON: {data[:80]!r}.", status=200
        ) from error


def is_last(event: Any) -> bool:
    """Whether a streamed event is the last one of llama.cpp's own protocol."""
    return isinstance(event, dict) and event.get("stop") is True


def own_message(body: bytes) -> str:
    """A server's own error message, as one short line."""
    text = body[: 2**16].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(message, dict) and name in message:
                message = message[name]
        text = message if isinstance(message, str) else json.dumps(message)
    line = " ".join(text.split())
    return line[:MAX_EXCERPT].rstrip(".") + "." if line else ""


def seconds_of(header: str | None, sent: str | None = None) -> float | None:
    """The seconds of a Retry-After header; None for an invalid value or a past date.

    Args:
        header: seconds, or a date.
        sent: when the server sent the reply, by its own clock, which may differ from
            this machine's; by default now.

    >>> seconds_of("Mon, 01 Jan 2024 00:00:09 GMT", "Mon, 01 Jan 2024 00:00:00 GMT")
    9.0
    """
    try:
        seconds = float(header or "")
    except ValueError:
        due = date_of(header)
        now = date_of(sent) or datetime.datetime.now(datetime.UTC)
        if due is None or due <= now:
            return None
        return (due - now).total_seconds()
    return seconds if 0 <= seconds < float("inf") else None


def date_of(header: str | None) -> datetime.datetime | None:
    """The date of a header; None for an invalid one."""
    try:
        date = email.utils.parsedate_to_datetime(header or "")
    except (ValueError, OverflowError):
        return None
    # A date without a zone is in UTC.
    return date if date.tzinfo is not None else date.replace(tzinfo=datetime.UTC)
