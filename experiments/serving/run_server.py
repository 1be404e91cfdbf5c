"""A server that runs an application until a signal asks it to stop.

After the first Ctrl-C or SIGTERM it takes no more connections, refuses the requests
that wait, and lets the running ones end within the grace period. Then the run is ended
after its current program. After a second Ctrl-C it waits for none.
"""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from tsi.experiments.serving.engine_worker import STOP_SECONDS, EngineWorker

MAX_HEADER_BYTES = 65_536


class Server(uvicorn.Server):
    """A server that says when it listens and when it is asked to stop.

    Args:
        config: of uvicorn.
        worker: notified when the server must stop, and when the grace period ends.
        announce: called when it listens.
        grace_seconds: that running requests may take to end.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        worker: EngineWorker,
        announce: Callable[[], None],
        grace_seconds: float,
    ) -> None:
        super().__init__(config)
        self._worker, self._announce = worker, announce
        self._grace_seconds = grace_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and remember the event loop, which signal handlers must not enter."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_end, self._loop)
        super().handle_exit(sig, frame)

    def _begin_end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._worker.drain()
        loop.call_later(self._grace_seconds, self._worker.stop)


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address, which does not listen yet.

    It is bound before models are loaded, so that a port in use is found early.

    Args:
        host: a name or an address, of IPv4 or IPv6.
        port: 0 for any free one.

    Raises:
        OSError: the address is in use or not of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    server_socket = socket.socket(family, kind, protocol)
    try:
        server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server_socket.bind(address)
    except OSError as error:
        server_socket.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return server_socket


def url_of(host: str, port: int) -> str:
    """The base URL for clients.

    >>> url_of("::1", 8000)
    'http://[::1]:8000/v1'
    """
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def run_server(
    app: Any,
    listener: socket.socket,
    worker: EngineWorker,
    announce: Callable[[], None],
    *,
    max_connections: int,
    grace_seconds: int,
) -> None:
    """Serve until a signal asks to stop.

    Args:
        app: an ASGI application.
        listener: of `bind`.
        worker: of the application.
        announce: called when it listens.
        max_connections: open ones; more are answered with status 503.
        grace_seconds: that running requests may take to end.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=grace_seconds + STOP_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = Server(config, worker, announce, grace_seconds)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        # uvicorn raises the signal again once it has stopped in good order.
        if not server.started:
            raise
