"""Connections that a server closes, and log-probabilities that it leaves out."""

import asyncio
import contextlib
import threading

import pytest

from tsi.errors import ServerError
from tsi.serving.address import parse_address
from tsi.serving.client import Client, Patience
from tsi.serving.good_turing import kept_mass_is_one
from tsi.serving.http_replies import TransientError
from tsi.serving.probe import gather_steps
from tsi.serving.step import ServedStep

REPLY = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"fine": 1}'


@contextlib.contextmanager
def hasty_server():
    """A server that closes a connection at its second request, without a reply."""
    loop, ready, ports = asyncio.new_event_loop(), threading.Event(), []

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REPLY)
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def start():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()

    def serve():
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(20)
    yield f"http://127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)


def test_a_connection_that_the_server_has_closed_is_replaced_without_a_pause():
    patience = Patience(first_pause=1000.0, longest_pause=1000.0)
    with hasty_server() as url, Client(parse_address(url), patience=patience) as client:
        for _ in range(3):
            found = client.submit(client.post("/", {})).result(60)
            assert found == {"fine": 1}
        assert client.traffic.failures == 2


def test_a_few_tokens_without_log_probability_do_not_hide_those_of_the_others():
    step = ServedStep((1,), 1, "limit", log_prob=-1.0)

    async def draw(found):
        if isinstance(found, Exception):
            raise found
        return found

    def draw_each(*found):
        return asyncio.run(gather_steps(map(draw, found)))

    assert draw_each(step, ServerError("a part"), step) == [step, step]
    with pytest.raises(TransientError):
        draw_each(step, TransientError("gone"))


def test_tokens_without_log_probability_count_as_drawn():
    # Three tokens have all but a tenth of the probability, and a tenth is not known.
    logs = {(1,): -0.9163, (2,): -1.204, (3,): -1.6094}  # 0.4, 0.3, 0.2
    counts = {(1,): 400, (2,): 300, (3,): 200}
    drawn = [
        ServedStep(tokens, 1, "limit", log_prob=logs[tokens])
        for tokens, count in counts.items()
        for _ in range(count)
    ]
    assert kept_mass_is_one(drawn, failed=100)
    assert not kept_mass_is_one(drawn)
