"""`tsi serve` outlives malformed requests."""

import contextlib
import json
import random
import socket

from serving import Served, listening, question

from tsi.experiments.serving.chat_request import WITHOUT_EFFECT


def odd_value(rng, depth=0):
    """A JSON value that no field expects."""
    leaves = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice([0, -1, 2**31, 2**63, 10**300, -(10**18)]),
        lambda: rng.choice([0.5, -0.0, 1e308, float("nan"), float("inf")]),
        lambda: (
            "".join(chr(rng.choice([0, 10, 0x1E, 65, 0xE000, 0xD800, 0xDFFF])))
            * rng.randrange(5)
        ),
        lambda: "<|im_end|>" * rng.randrange(3),
    ]
    if depth < 3:
        leaves.append(lambda: [odd_value(rng, depth + 1) for _ in range(3)])
        leaves.append(lambda: {str(i): odd_value(rng, depth + 1) for i in range(3)})
    return rng.choice(leaves)()


def malformed_body(rng):
    """A body that is no request: bytes, broken JSON, or JSON of odd values."""
    good = json.dumps(question(seed=1, stream=False, tsi={"budget": 4})).encode()
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return good[: rng.randrange(len(good))]
    if kind == 2:
        place = rng.randrange(len(good))
        return good[:place] + rng.randbytes(1 + rng.randrange(3)) + good[place + 1 :]
    if kind == 3:
        opening = rng.choice([b"[", b'{"a":', b'{"messages":['])
        return opening * rng.randrange(1, 20_000)
    fields = question(seed=1)
    own = {"method": "smc", "budget": 4, "genealogy": False, "problem_id": "p"}
    fields |= {"tsi": own, "stream": False, "temperature": 1, "stream_options": {}}
    if kind == 4:
        fields[rng.choice([*fields, *WITHOUT_EFFECT])] = odd_value(rng)
    else:
        place = rng.choice([own, fields["messages"][0]])
        place[rng.choice([*place, "extra"])] = odd_value(rng)
    return json.dumps(fields).encode()


def malformed_request(rng):
    """The bytes of a request of HTTP in which something is wrong, and whether the
    server can see where it ends."""
    body = malformed_body(rng)
    path, method = b"/v1/chat/completions", b"POST"
    length, kind = str(len(body)).encode(), b"application/json"
    fault = rng.randrange(12)
    if fault == 0:
        path = b"/" + bytes(rng.choices(b"abc/%.?#&=\xff\x80", k=rng.randrange(60)))
    elif fault == 1:
        method = rng.choice([b"GET", b"PUT", b"DELETE", b"OPTIONS", b"BREW", b"post"])
    elif fault == 2:
        length = rng.choice([b"-1", b"x", b"", b"9" * 30, b"1, 2", b"0", b"5"])
    elif fault == 3:
        length = str(len(body) + rng.randrange(1, 100)).encode()
    elif fault == 4:
        kind = rng.choice([b"text/plain", b"", b"\x00", b"a" * 100_000])
    elif fault == 5:
        return rng.randbytes(rng.randrange(1, 300)), False
    head = b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n" % (
        method,
        path,
    )
    if fault == 6:
        head += b"Transfer-Encoding: chunked\r\n"
        body = (
            rng.choice([b"zz\r\n", b"5\r\nab", b"-1\r\n\r\n", b"ffffffffff\r\n"]) + body
        )
    else:
        head += b"Content-Length: %s\r\n" % length
    return head + b"Content-Type: %s\r\n\r\n" % kind + body, fault not in (2, 3, 6)


def exchange(port, data, *, is_complete=True):
    """Send bytes; everything that the server answers.

    What is not complete is ended by closing the connection in this direction.
    """
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
        contextlib.suppress(OSError),
    ):
        connection.sendall(data)
        if not is_complete:
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65_536):
            answer += part
    return answer


def test_no_malformed_request_ends_the_server():
    rng = random.Random(0)
    statuses = {}
    served = Served(max_body="100KB", body_seconds=1)
    with listening(served) as (port, _):
        for _ in range(500):
            data, is_complete = malformed_request(rng)
            answer = exchange(port, data, is_complete=is_complete)
            status = answer[9:12].decode("latin-1") if answer else "closed"
            statuses[status] = statuses.get(status, 0) + 1
            if b"application/json" in answer.partition(b"\r\n\r\n")[0]:
                json.loads(answer.partition(b"\r\n\r\n")[2])
        body = json.dumps(question(seed=1)).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += b"Connection: close\r\nContent-Type: application/json\r\n"
        slow = exchange(port, head + b"Content-Length: 9\r\n\r\n{")
        good = exchange(port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert slow.startswith(b"HTTP/1.1 408")
    assert good.startswith(b"HTTP/1.1 200")
    assert json.loads(good.partition(b"\r\n\r\n")[2])["tsi"]["budget"] == 4
    assert "500" not in statuses, statuses
    assert statuses["400"] > 200, statuses
    assert {"404", "405", "415"} <= set(statuses), statuses
    assert served.worker.num_open == 0
