"""Checks of every request: its host, its token, and one line in the log.

The log has the method, the route, the status and the time. It has no headers, query or
body, so no credentials or questions.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response

from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.bearer import Bearer, host_name
from tsi.experiments.serving.completion import encode_json
from tsi.experiments.serving.engine_worker import STOPPING

log = logging.getLogger("tsi.serve")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Guard:
    """Refuses requests of other hosts and without the token, and logs all.

    Args:
        app: that answers the others.
        bearer: the token; None if none is needed.
        hosts: names by which the server is addressed; None for any.
        open_paths: that need no token.
        routes: paths that the log names; it writes "other" for the rest.
    """

    def __init__(
        self,
        app: Any,
        bearer: Bearer | None,
        hosts: frozenset[str] | None,
        open_paths: frozenset[str],
        routes: frozenset[str],
    ) -> None:
        self.app, self.bearer, self.hosts = app, bearer, hosts
        self.open_paths, self.routes = open_paths, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start_time, status = time.monotonic(), 0

        async def send_and_record(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send_and_record)
        else:
            try:
                await self.app(scope, receive, send_and_record)
            except asyncio.CancelledError:
                # The server does not wait for this request any longer.
                if status:
                    raise
                stopping = ApiError(STOPPING, 503, code="stopping")
                await error_response(stopping)(scope, receive, send_and_record)
        finally:
            path = scope["path"] if scope["path"] in self.routes else "other"
            method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
            seconds = time.monotonic() - start_time
            log.info("%s %s %s %.2f s", method, path, status or "no answer", seconds)

    def _check(self, scope: Scope) -> None:
        """Refuse a request of another host, or without the token.

        Raises:
            ApiError: see above.
        """
        headers = Headers(scope=scope)
        if self.hosts is not None and host_name(headers.get("host", "")) not in (
            self.hosts
        ):
            raise ApiError(
                "This server accepts requests for 127.0.0.1 and localhost only; start "
                "it with --host to serve others.",
                403,
            )
        if self.bearer is None or scope["path"] in self.open_paths:
            return
        if not self.bearer.allows(headers.get("authorization", "")):
            raise ApiError(
                "The request needs the header Authorization: Bearer TOKEN, with the "
                "token of this server.",
                401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def error_response(error: ApiError) -> Response:
    """The response to a request that is refused or has failed."""
    return json_response(error.body(), error.status, error.headers)


def json_response(
    fields: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response with a JSON object."""
    return Response(
        encode_json(fields),
        status,
        {**HEADERS, **(headers or {})},
        media_type="application/json",
    )
