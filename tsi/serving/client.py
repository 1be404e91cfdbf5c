"""A client of one server: JSON over HTTP, with retries for servers that fail.

Connections are kept alive and their number is bounded. A request that fails for a
temporary reason (no connection, a deadline, a status of 429 or 5xx, a body that is cut
short or is not JSON) is repeated after growing pauses. The requests of this package
change nothing on a server, so repeating them is safe. Errors never contain the key,
even if a server repeats it.

The requests run in an event loop in a separate thread; callers are in other threads.
"""

import asyncio
import atexit
import contextlib
import json
import random
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

import aiohttp

from tsi.errors import ServerError
from tsi.serving.address import Address
from tsi.serving.http_replies import (
    MAX_LINE,
    TransientError,
    parse_json,
    read_body,
    read_events,
    refuse,
)


class Patience(NamedTuple):
    """Limits of a client: waiting times, reply size and connections.

    Attributes:
        deadline: seconds for one attempt of a request, from the moment that it is sent.
        total: a request is not repeated later than this many seconds after its first
            failure.
        first_pause, longest_pause: seconds between attempts; pauses double.
        max_bytes: largest size of a reply.
        max_connections: maximum number of parallel requests.
    """

    deadline: float = 600.0
    total: float = 600.0
    first_pause: float = 0.25
    longest_pause: float = 15.0
    max_bytes: int = 64 * 2**20
    max_connections: int = 64


MAX_CONNECT = 10.0
"""Seconds in which a server must accept a connection."""
BRIEF_ATTEMPTS = 3
BRIEF_TOTAL = 2.0
BRIEF_DEADLINE = 30.0
"""Limits for requests that only identify a server."""
MIN_KEY = 4
"""Keys of at least this many characters are removed from messages."""


class Traffic(NamedTuple):
    """Counts of a client's requests so far.

    Attributes:
        requests: number of answered requests.
        failures: number of attempts that failed and were repeated.
        seconds: processor time of the client's thread.
    """

    requests: int
    failures: int
    seconds: float


KEPT_ERRORS = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
"""Errors when a server has closed a connection; the second also occurs when a
connection cannot be opened."""
CLOSING_SECONDS = 10.0
"""Seconds that a client may take to close."""
KEPT_SECONDS = 3.0
"""Seconds for which an idle connection is kept; llama.cpp's server ends it after 5."""


class Client:
    """Sends requests to one server.

    Args:
        address: of the server.
        key: sent as a bearer token; None for no key.
        patience: the client's limits.
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
        self._lock, self._is_closed = threading.Lock(), False
        # Attempts wait here and not in the connection pool, where their deadlines would
        # run.
        self._slots = asyncio.Semaphore(patience.max_connections)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        # Connections are closed even if nobody closes the client.
        atexit.register(self.close)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all running requests, and close all connections."""
        with self._lock:
            # A forked process does not have the thread.
            if self._is_closed or not self._thread.is_alive():
                return
            self._is_closed = True
            atexit.unregister(self.close)
            closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        with contextlib.suppress(TimeoutError):
            closing.result(CLOSING_SECONDS)
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
        """Start a coroutine in the client's thread.

        Returns:
            The coroutine's future; a failed one if the client is closed.
        """
        with self._lock:
            if not self._is_closed:
                guarded = self._without_key(work)
                return asyncio.run_coroutine_threadsafe(guarded, self._loop)
        work.close()
        future: Future[Any] = Future()
        future.set_exception(closed_error(self.address))
        return future

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine in the client's thread.

        Raises:
            ServerError: the coroutine raised it, or the client is closed.
        """
        future = self.submit(work)
        try:
            return future.result()
        except CancelledError as error:
            raise closed_error(self.address) from error
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
            patient: whether temporary failures are retried for long; else only a few
                attempts are made.

        Raises:
            ServerError: the server refuses the request, or has failed for too long.
        """
        return await self._repeat("POST", path, body, patient)

    async def events(
        self,
        path: str,
        body: Mapping[str, Any],
        is_enough: Callable[[list[Any]], bool] | None = None,
        *,
        patient: bool = True,
    ) -> list[Any]:
        """The events of a streamed reply; errors are those of `post`.

        Args:
            path, body, patient: see `post`.
            is_enough: whether the events so far are enough; then the connection is
                closed.
        """
        return await self._repeat(
            "STREAM", path, body, patient, is_enough or (lambda _: False)
        )

    async def _repeat(
        self, verb: str, path: str, body: Any, patient: bool, is_enough: Any = None
    ) -> Any:
        patience = self.patience
        if not patient:
            patience = patience._replace(
                deadline=min(patience.deadline, BRIEF_DEADLINE),
                total=min(patience.total, BRIEF_TOTAL),
            )
        attempts, failed, pause = 0, 0.0, patience.first_pause
        repeated = False
        while True:
            try:
                async with self._slots:
                    reply = await self._attempt(
                        verb, path, body, is_enough, patience.deadline
                    )
            except TransientError as error:
                now = time.monotonic()
                # Waiting in a queue is not a failure: time is counted from the first
                # failure.
                failed, attempts = failed or now, attempts + 1
                left = patience.total - (now - failed)
                if left <= 0 or (not patient and attempts >= BRIEF_ATTEMPTS):
                    raise
                self._failures += 1
                if error.pause == 0 and not repeated:
                    repeated = True
                    continue
                # Random pauses keep all rows from asking a restarted server at the same
                # moment.
                wait = pause * random.uniform(0.5, 1.0)
                await asyncio.sleep(min(max(wait, error.pause or 0.0), left))
                pause = min(2 * pause, patience.longest_pause)
            else:
                self._requests += 1
                return reply

    async def _attempt(
        self, verb: str, path: str, body: Any, is_enough: Any, deadline: float
    ) -> Any:
        url = self.address.url + path
        stream = verb == "STREAM"
        # llama.cpp's server closes the connection of a stream without announcing it.
        headers = {"Connection": "close"} if stream else None
        limits = aiohttp.ClientTimeout(
            total=deadline, sock_connect=min(deadline, MAX_CONNECT)
        )
        try:
            async with self._open().request(
                "POST" if stream else verb,
                url,
                data=None if body is None else json.dumps(body).encode(),
                headers=headers,
                # A redirect would carry the key elsewhere.
                allow_redirects=False,
                timeout=limits,
            ) as reply:
                if reply.status != 200:
                    await refuse(reply)
                max_bytes = self.patience.max_bytes
                if stream:
                    return await read_events(reply, is_enough, max_bytes)
                return parse_json(await read_body(reply, max_bytes), url)
        except aiohttp.ConnectionTimeoutError as error:
            raise TransientError(
                f"{url} cannot be reached: it did not accept a connection within "
                f"{limits.sock_connect:g} s. Is the server running at this address?"
            ) from error
        except TimeoutError as error:
            raise TransientError(
                f"{url} did not answer within {deadline:g} s."
            ) from error
        except (aiohttp.InvalidURL, UnicodeError) as error:
            raise ServerError(f"{url:.200} is not the address of a server.") from error
        except (aiohttp.ClientError, ConnectionError, OSError) as error:
            # The server may have closed a kept connection in the meantime.
            was_kept_open = isinstance(error, KEPT_ERRORS) and not isinstance(
                error, aiohttp.ClientConnectorError
            )
            raise TransientError(
                f"{url} cannot be reached ({type(error).__name__}: {error!s:.200}). "
                "Is the server running at this address?",
                0.0 if was_kept_open else None,
            ) from error

    async def _without_key(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine, whose errors do not contain the key."""
        try:
            return await work
        except ServerError as error:
            key = self._key
            if key is not None and len(key) >= MIN_KEY:
                error.args = tuple(str(arg).replace(key, "***") for arg in error.args)
                if key in "".join(traceback.format_exception(error)):
                    error.__cause__ = error.__context__ = None
            raise

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
                # Cookies from a server are ignored.
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=MAX_LINE // 2,
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding"),
            )
        return self._session

    async def _close(self) -> None:
        own_task = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own_task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


def closed_error(address: Address) -> ServerError:
    """The error for a request to a client that is closed."""
    return ServerError(
        f"The client of {address} has been closed. Connect again, and run what is left."
    )
