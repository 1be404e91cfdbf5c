"""The body of a request, within limits of size and time."""

import asyncio

from starlette.requests import Request

from tsi.experiments.serving.api_error import ApiError

JSON_TYPE = "application/json"


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """All bytes of a body.

    Args:
        request: whose body has not been read.
        max_bytes: of the body.
        seconds: within which it must arrive.

    Raises:
        ApiError: it is longer or slower, or its type is not JSON. A page in a browser
            can send other types to a server on the same machine without being asked.
        ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE:
        raise ApiError(f"The request needs the header Content-Type: {JSON_TYPE}.", 415)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_long(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_long(max_bytes)
    except TimeoutError:
        raise ApiError(
            f"The body did not arrive within {seconds:g} s.",
            408,
            headers={"Connection": "close"},
        ) from None
    return bytes(body)


def _too_long(max_bytes: int) -> ApiError:
    return ApiError(
        f"The body is longer than {max_bytes:,} bytes, the most that this server reads "
        "(--max-body).",
        413,
        headers={"Connection": "close"},
    )
