"""A server with llama.cpp's native endpoint and no model: every step is the same.

``python -m tsi.experiments.benchmarks.instant_server`` prints its port and serves until
its input ends. Replies are bytes that are computed once for each number of rows, so
that a client is measured and not the server.
"""

import asyncio
import json
import sys
from typing import Any

STEP_TOKENS = 60
"""Of each step, its delimiter included."""


def step(index: int) -> dict[str, Any]:
    """The reply of one row."""
    return {
        "index": index,
        "tokens": list(range(1000, 1000 + STEP_TOKENS)),
        "stop_type": "word",
        "stopping_word": "\n\n",
        "tokens_evaluated": 100,
        "truncated": False,
        "timings": {"cache_n": 99, "prompt_n": 1, "predicted_n": STEP_TOKENS},
    }


def http(body: bytes) -> bytes:
    """A response with status 200."""
    head = (
        "HTTP/1.1 200 OK",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection."""
    replies: dict[int, bytes] = {}
    while head := await read_head(reader):
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        body = await reader.readexactly(length)
        rows = num_rows(body)
        if rows not in replies:
            steps = [step(index) for index in range(rows)]
            content = steps if rows > 1 else steps[0]
            replies[rows] = http(json.dumps(content).encode())
        writer.write(replies[rows])
    writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """The head of a request; empty at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def num_rows(body: bytes) -> int:
    """The number of steps that a request asks for."""
    request = json.loads(body)
    prompt = request["prompt"]
    return len(prompt) if isinstance(prompt[0], list) else request.get("n", 1)


async def main() -> None:
    """Serve until the input ends."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
