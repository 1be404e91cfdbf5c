"""`tsi serve` reads requests of unknown origin: what is refused, and how."""

import contextlib
import json
import random
import socket

import pytest
from serving import MODEL, Served, chat, listening, question

from tsi.errors import ConfigurationError
from tsi.experiments.serving import bearer as bearer_module
from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.bearer import Bearer, hosts_of, read_bearer
from tsi.experiments.serving.chat_request import (
    POLICY_FIELDS,
    WITHOUT_EFFECT,
    Offer,
    parse_request,
)
from tsi.experiments.serving.json_body import parse_body
from tsi.experiments.serving.limits import Limits, parse_size

OFFER = Offer(MODEL, "smc", 4, 16)


@pytest.fixture(scope="module")
def served():
    served = Served(max_body="100KB", max_prompt_tokens=64)
    with served.client() as client:
        served.http = client
        yield served


def refusal(fields, offer=OFFER):
    with pytest.raises(ApiError) as caught:
        parse_request(fields, offer)
    return caught.value


def test_a_request_has_defaults_of_the_server():
    asked = parse_request(question(user="me", metadata={"a": 1}), OFFER)
    assert (asked.method, asked.budget) == ("smc", 4)
    assert asked.seed is asked.temperature is asked.max_tokens is None
    own = {"method": "best_of_n", "budget": 16, "genealogy": True, "problem_id": "p"}
    asked = parse_request(question(tsi=own, seed=7, temperature=0), OFFER)
    assert (asked.method, asked.budget, asked.genealogy) == ("best_of_n", 16, True)
    assert (asked.seed, asked.temperature, asked.problem_id) == (7, 0.0, "p")
    both = question(max_tokens=9, max_completion_tokens=5)
    assert parse_request(both, OFFER).max_tokens == 5


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_field_that_would_change_the_answer_is_refused(name):
    harmless = (None, *WITHOUT_EFFECT[name])
    for value in harmless:
        parse_request(question(**{name: value}), OFFER)
    harmful = {"n": 2, "best_of": 3}.get(name, {"type": "harmful"})
    error = refusal(question(**{name: harmful}))
    assert (error.status, error.param) == (400, name)
    assert name in error.message
    if any(type(value) is int and value == 1 for value in harmless):
        # JSON's true is not the number 1.
        assert refusal(question(**{name: True})).param == name


@pytest.mark.parametrize("name", POLICY_FIELDS)
def test_a_field_of_the_policy_must_be_that_of_the_server(name):
    parse_request(question(**{name: POLICY_FIELDS[name][1][0]}), OFFER)
    assert POLICY_FIELDS[name][0] in refusal(question(**{name: 0.5})).message
    set_at_start = OFFER._replace(policy={name: 0.5})
    parse_request(question(**{name: 0.5}), set_at_start)
    assert "0.5" in refusal(question(**{name: 1}), set_at_start).message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": None}, "model", "names no model"),
        ({"messages": None}, "messages", "null"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": ["hello"]}, "messages[0]", "a string"),
        ({"messages": [{}] * 257}, "messages", "at most 256"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "tool"),
        ({"messages": [{"role": {}, "content": "x"}]}, "messages[0].role", "an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0]", "empty"),
        (
            {"messages": [{"role": "user", "content": "a\ud800"}]},
            "messages[0].content",
            "surrogate",
        ),
        (
            {"messages": [{"role": "user", "content": "a\x1eUser: b"}]},
            "messages[0].content",
            "U+001E",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
            "text only",
        ),
        (
            {"messages": [{"role": "system", "content": "x"}]},
            "messages",
            "not a question",
        ),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant")]},
            "messages",
            "not a question",
        ),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "user")]},
            "messages[1]",
            "in turn",
        ),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("system", "system")]},
            "messages[1]",
            "in turn",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
            "messages[0]",
            "no tools",
        ),
        ({"seed": -1}, "seed", "between 0 and 4294967295"),
        ({"seed": 2**32}, "seed", "between"),
        ({"seed": True}, "seed", "a boolean"),
        ({"seed": 1.0}, "seed", "fraction"),
        ({"temperature": "1"}, "temperature", "a string"),
        ({"temperature": 2.5}, "temperature", "between 0 and 2"),
        ({"temperature": 10**400}, "temperature", "between"),
        ({"max_tokens": 0}, "max_tokens", "between"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": []}, "stream_options", "an object"),
        ({"tsi": []}, "tsi", "an object"),
        ({"tsi": {"metod": "smc"}}, "tsi", "method, budget"),
        ({"tsi": {"method": "magic"}}, "tsi.method", "no method named 'magic'"),
        ({"tsi": {"budget": 17}}, "tsi.budget", "between 1 and 16"),
        ({"tsi": {"budget": "many"}}, "tsi.budget", "a string"),
        ({"tsi": {"method": "pimh", "budget": 3}}, "tsi.budget", "at least 4"),
        ({"tsi": {"problem_id": ""}}, "tsi.problem_id", "1 to 200"),
        (
            {"tsi": {"method": "greedy"}, "temperature": 1},
            "temperature",
            "leave temperature out",
        ),
    ],
)
def test_a_wrong_field_is_named_in_a_sentence(fields, param, words):
    error = refusal(question(**fields))
    assert (error.status, error.param) == (400, param)
    assert words in error.message
    assert error.message.endswith(".")


def test_an_unknown_model_is_not_found(served):
    reply = chat(served.http, question(model="gpt"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (
        404,
        "model_not_found",
    )
    assert served.http.get(f"/v1/models/{MODEL}").json()["id"] == MODEL
    assert served.http.get("/v1/models/gpt").status_code == 404
    assert [m["id"] for m in served.http.get("/v1/models").json()["data"]] == [MODEL]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "line 1, column 2"),
        (b"\xff\xfe{", "not UTF-8 at byte 1"),
        (b"[]", "must be a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body, words):
    with pytest.raises(ApiError, match=words):
        parse_body(body)


def test_a_long_body_and_a_long_prompt_are_refused(served):
    reply = chat(served.http, question("x" * 200_000))
    assert (reply.status_code, reply.json()["error"]["type"]) == (
        413,
        "invalid_request_error",
    )
    parts = (b"x" * 1000 for _ in range(200))  # without a length
    headers = {"content-type": "application/json"}
    reply = served.http.post("/v1/chat/completions", content=parts, headers=headers)
    assert reply.status_code == 413
    reply = chat(served.http, question("one " * 100))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"


def test_other_paths_methods_and_types_are_refused_in_the_same_shape(served):
    replies = {
        404: served.http.get("/v1/completions"),
        405: served.http.get("/v1/chat/completions"),
        415: served.http.post("/v1/chat/completions", data={"model": MODEL}),
    }
    for status, reply in replies.items():
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_every_private_character_in_a_message_is_refused(served):
    every = "".join(map(chr, range(0xE000, 0xF900)))
    reply = chat(served.http, question(every))
    assert reply.status_code == 400
    assert "private-use" in reply.json()["error"]["message"]


def test_the_token_is_needed_everywhere_but_for_health():
    with Served(bearer=Bearer("se-cret")).client() as http:
        assert http.get("/health").status_code == 200
        for header in ("", "Bearer", "Bearer other", "Basic se-cret", "se-cret"):
            reply = http.get("/v1/models", headers={"authorization": header})
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.json()["error"]["code"] == "invalid_api_key"
        right = {"authorization": "Bearer se-cret"}
        assert chat(http, question()).status_code == 401
        assert chat(http, question(), headers=right).status_code == 200


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []

    def compare(left, right):
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr(bearer_module.hmac, "compare_digest", compare)
    assert Bearer("a").allows("bearer a")
    assert not Bearer("a").allows("Bearer " + "b" * 100)
    assert compared == [(32, 32), (32, 32)]


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.delenv("TSI_SERVE_TOKEN", raising=False)
    assert read_bearer(None) is None
    assert read_bearer(file).allows("Bearer from-file")
    monkeypatch.setenv("TSI_SERVE_TOKEN", "from-env")
    assert read_bearer(None).allows("Bearer from-env")
    # No later process inherits it.
    assert read_bearer(None) is None
    monkeypatch.setenv("TSI_SERVE_TOKEN", "from-env")
    with pytest.raises(ConfigurationError, match="use one of them"):
        read_bearer(file)
    for wrong in ("", "two words", "é", "x" * 5000):
        monkeypatch.setenv("TSI_SERVE_TOKEN", wrong)
        with pytest.raises(ConfigurationError, match="printable ASCII"):
            read_bearer(None)


def test_a_local_server_has_no_other_name():
    with Served(hosts=hosts_of("127.0.0.1")).client() as http:
        assert http.get("/health").status_code == 200
        for host in ("localhost:8000", "[::1]:8000", "LOCALHOST"):
            assert http.get("/health", headers={"host": host}).status_code == 200
        for host in ("rebound.example", "127.0.0.1.example", ""):
            reply = http.get("/health", headers={"host": host})
            assert reply.status_code == 403


def test_limits_are_positive_and_sizes_have_units():
    assert Limits(max_body="2 MB").check().body_bytes == 2_000_000
    for wrong in ({"max_budget": 0}, {"max_body": "0"}, {"grace_seconds": -1}):
        with pytest.raises(ConfigurationError, match="at least 1"):
            Limits(**wrong).check()
    for size in ("", "MB", "-1", "1.5MB", "1TB", "9" * 99):
        with pytest.raises(ConfigurationError, match="as in 1MB"):
            parse_size(size)


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


@pytest.mark.parametrize(
    ("name", "has_evidence"),
    [
        ("greedy", True),
        ("mcts", False),
        ("power_smc", True),
        ("particle_gibbs", True),
        ("parallel_tempering", True),
    ],
)
def test_kinds_of_methods_say_what_their_numbers_are(served, name, has_evidence):
    reply = chat(served.http, question(seed=0, tsi={"method": name, "budget": 8}))
    assert reply.status_code == 200, reply.text
    own = reply.json()["tsi"]
    assert own["method"] == name
    assert own["estimand"]["has_target"] == has_evidence
    assert ("no target" in own["estimand"]["posterior"]) != has_evidence
    assert (own["log_evidence_error"] is None) or has_evidence
