"""A client of one server: JSON over HTTP, with patience for servers that fail.

Connections are kept alive and their number is bounded. A request that fails for a
reason that may pass (no connection, a deadline, a status of 429 or 5xx, a body that is
cut short or is no JSON) is repeated with growing pauses. The requests of this package
change nothing on a server, so that a repetition does no harm.

An event loop in a thread of its own does the work; callers are in other threads.
"""

import asyncio
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError, ServerError
from tsi.serving.address import KEY_VARIABLE, Address

try:
    import aiohttp
except ModuleNotFoundError as error:
    raise ConfigurationError(
        "A policy behind a server needs the package aiohttp; install it with "
        "pip install 'tsi[served]'."
    ) from error

MAX_EXCERPT = 300
"""Characters of a server's own message that an error repeats."""


class Patience(NamedTuple):
    """How long a client waits, and for how much.

    Attributes:
        deadline: seconds for one attempt of a request.
        total: seconds after which a request that has failed is not repeated.
        first_pause, longest_pause: seconds between attempts; pauses double.
        max_bytes: of a reply.
        max_connections: requests at once.
    """

    deadline: float = 600.0
    total: float = 600.0
    first_pause: float = 0.25
    longest_pause: float = 15.0
    max_bytes: int = 64 * 2**20
    max_connections: int = 64


class Traffic(NamedTuple):
    """What a client has done so far.

    Attributes:
        requests: answered ones.
        failures: attempts that failed and were repeated.
        seconds: processor time of the client's thread.
    """

    requests: int
    failures: int
    seconds: float


KEPT_ERRORS = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
"""What is seen when a server has closed a connection; the second one also where it
cannot be opened."""
KEPT_SECONDS = 3.0
"""Seconds for which an idle connection is kept; llama.cpp's server ends it after 5."""


class TransientError(ServerError):
    """A failure that may pass.

    Args:
        message: of the error.
        pause: seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class Client:
    """Sends requests to one server.

    Args:
        address: of the server.
        key: sent as a bearer token; None for none.
        patience: how long it waits.
    """

    def __init__(
        self,
        address: Address,
        key: str | None = None,
        patience: Patience = Patience(),  # noqa: B008
    ) -> None:
        self.address, self.patience = address, patience
        self._key = key
        self._requests = self._failures = 0
        self._session: aiohttp.ClientSession | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way, and close all connections."""
        if self._loop.is_closed():
            return
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def traffic(self) -> Traffic:
        """What the client has done so far."""
        clock = time.pthread_getcpuclockid(self._thread.ident or 0)
        seconds = time.clock_gettime(clock) if self._thread.is_alive() else 0.0
        return Traffic(self._requests, self._failures, seconds)

    def submit(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        """Start a coroutine in the client's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine in the client's thread."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def get(self, path: str, *, patient: bool = True) -> Any:
        """The JSON under a path; see `post`."""
        return await self._repeat("GET", path, None, patient)

    async def post(
        self, path: str, body: Mapping[str, Any], *, patient: bool = True
    ) -> Any:
        """The JSON that answers a request.

        Args:
            path: begins with a slash.
            body: of the request.
            patient: whether failures that may pass are waited out.

        Raises:
            ServerError: the server refuses the request, or has failed for too long.
        """
        return await self._repeat("POST", path, body, patient)

    async def events(
        self,
        path: str,
        body: Mapping[str, Any],
        enough: Callable[[list[Any]], bool] | None = None,
    ) -> list[Any]:
        """The events of a streamed reply; errors are those of `post`.

        Args:
            path, body: see `post`.
            enough: whether the events so far are enough; then the connection is closed.
        """
        return await self._repeat(
            "STREAM", path, body, True, enough or (lambda _: False)
        )

    async def _repeat(
        self, verb: str, path: str, body: Any, patient: bool, enough: Any = None
    ) -> Any:
        patience = self.patience
        began, pause, repeated = time.monotonic(), patience.first_pause, False
        while True:
            try:
                reply = await self._attempt(verb, path, body, enough)
            except TransientError as error:
                spent = time.monotonic() - began
                if not patient or spent > patience.total:
                    raise
                self._failures += 1
                if error.pause == 0 and not repeated:
                    repeated = True
                    continue
                # Servers that restart are not asked by all rows at one moment.
                wait = pause * random.uniform(0.5, 1.0)
                if error.pause:
                    wait = min(error.pause, patience.total)
                await asyncio.sleep(wait)
                pause = min(2 * pause, patience.longest_pause)
            else:
                self._requests += 1
                return reply

    async def _attempt(self, verb: str, path: str, body: Any, enough: Any) -> Any:
        url = self.address.url + path
        stream = verb == "STREAM"
        # llama.cpp's server closes the connection of a stream and does not say so.
        headers = {"Connection": "close"} if stream else None
        try:
            async with self._open().request(
                "POST" if stream else verb,
                url,
                data=None if body is None else json.dumps(body).encode(),
                headers=headers,
                # A redirect would carry the key elsewhere.
                allow_redirects=False,
            ) as reply:
                if reply.status != 200:
                    await self._refuse(reply, path)
                if stream:
                    return await self._read_events(reply, enough)
                return parse_json(await self._read(reply), url)
        except TimeoutError as error:
            raise TransientError(
                f"{url} did not answer within {self.patience.deadline:g} s."
            ) from error
        except (aiohttp.ClientError, ConnectionError, OSError) as error:
            # A kept connection may have been closed by the server meanwhile.
            kept = isinstance(error, KEPT_ERRORS) and not isinstance(
                error, aiohttp.ClientConnectorError
            )
            raise TransientError(
                f"{url} cannot be reached ({type(error).__name__}: {error!s:.200}). "
                "Is the server running at this address?",
                0.0 if kept else None,
            ) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._key is not None:
                headers["Authorization"] = f"Bearer {self._key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self.patience.max_connections,
                    keepalive_timeout=KEPT_SECONDS,
                ),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding"),
                timeout=aiohttp.ClientTimeout(total=self.patience.deadline),
            )
        return self._session

    async def _read(self, reply: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        async for piece in reply.content.iter_chunked(2**16):
            pieces.append(piece)
            size += len(piece)
            self._check_size(size, reply)
        return b"".join(pieces)

    async def _read_events(
        self, reply: aiohttp.ClientResponse, enough: Callable[[list[Any]], bool]
    ) -> list[Any]:
        events: list[Any] = []
        size, ended = 0, False
        try:
            async for line in reply.content:
                size += len(line)
                self._check_size(size, reply)
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    ended = True
                    break
                events.append(parse_json(data, str(reply.url)))
                ended = ended or is_last(events[-1])
                if enough(events):
                    ended = True
                    break
        except ValueError as error:  # a line above the parser's limit
            raise TransientError(
                f"{reply.url} sent a line that is too long."
            ) from error
        if not ended:
            raise TransientError(f"The reply of {reply.url} was cut short.")
        return events

    def _check_size(self, size: int, reply: aiohttp.ClientResponse) -> None:
        if size > self.patience.max_bytes:
            raise ServerError(
                f"The reply of {reply.url} is longer than {self.patience.max_bytes:,} "
                "bytes; this is no reply of an inference server."
            )

    async def _refuse(self, reply: aiohttp.ClientResponse, path: str) -> None:
        """Raise the error of a status that is not 200."""
        message = own_message(await self._read(reply))
        said = f": {message}" if message else "."
        where, status = f"{self.address.url}{path}", reply.status
        if status in (401, 403):
            raise ServerError(
                f"{where} wants a key (status {status}){said} Put the right one into "
                f"the environment variable {KEY_VARIABLE}."
            )
        if status in (408, 425, 429) or status >= 500:
            pause = seconds_of(reply.headers.get("Retry-After"))
            raise TransientError(f"{where} failed with status {status}{said}", pause)
        if 300 <= status < 400:
            raise ServerError(
                f"{where} redirects (status {status}); give the address that it leads "
                "to."
            )
        raise ServerError(f"{where} refused the request with status {status}{said}")

    async def _close(self) -> None:
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


def parse_json(data: bytes, url: str) -> Any:
    """A reply as JSON.

    Raises:
        TransientError: it is none, as when it has been cut short.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TransientError(
            f"The reply of {url} is not JSON: {data[:80]!r}."
        ) from error


def is_last(event: Any) -> bool:
    """Whether a streamed event is the last one of llama.cpp's own protocol."""
    return isinstance(event, dict) and event.get("stop") is True


def own_message(body: bytes) -> str:
    """What a server says about an error, as one short line."""
    text = body[: 2**16].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        text = found if isinstance(found, str) else json.dumps(found)
    line = " ".join(text.split())
    return line[:MAX_EXCERPT].rstrip(".") + "." if line else ""


def seconds_of(header: str | None) -> float | None:
    """The seconds of a Retry-After header; None for a date or nonsense."""
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None
