"""Requests of `tsi serve` that wait for the engine: order, batches, ends, failures."""

import concurrent.futures
import contextlib
import json
import logging
import signal
import socket

import pytest
from serving import Served, chat, events_of, listening, question, wait_until

from tsi.errors import (
    ConfigurationError,
    OutOfMemoryError,
    ProblemError,
    ServerError,
)
from tsi.experiments.serving.bearer import Bearer
from tsi.experiments.serving.engine_worker import FAILED


def send(port, fields):
    """A connection on which a request was sent."""
    body = json.dumps(fields).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head % len(body) + body)
    return connection


@pytest.fixture
def served():
    served = Served(max_concurrent=3)
    with served.client() as client, concurrent.futures.ThreadPoolExecutor() as pool:
        served.http = client
        served.later = lambda fields: pool.submit(chat, client, fields)
        yield served
        served.engine.gate.set()


def hold(served, number=1, **fields):
    """Close the gate; requests, the first of which the engine has."""
    served.engine.gate.clear()
    held = [served.later(question(**fields))]
    wait_until(lambda: served.engine.prompts)
    for _ in range(number - 1):
        held.append(served.later(question(**fields)))
        wait_until(lambda: served.worker.num_open == len(held))
    return held


def test_more_requests_than_are_allowed_are_told_to_come_back(served):
    held = hold(served, 3)
    refused = chat(served.http, question())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert served.http.get("/health").json() == {"status": "ok", "requests": 3}
    served.engine.gate.set()
    assert [reply.result().status_code for reply in held] == [200] * 3
    assert chat(served.http, question()).status_code == 200
    wait_until(lambda: served.worker.num_open == 0)


def test_waiting_requests_are_one_batch_with_streams_of_their_own(served):
    (first,) = hold(served)
    others = [served.later(question()) for _ in range(2)]
    wait_until(lambda: served.worker.num_open == 3)
    served.engine.gate.set()
    alone = first.result().json()["tsi"]
    owns = [other.result().json()["tsi"] for other in others]
    assert alone["batch"] == 1
    assert [own["batch"] for own in owns] == [2, 2]
    assert owns[0]["seed"] == owns[1]["seed"] != alone["seed"]
    assert owns[0]["problem_id"] != owns[1]["problem_id"]
    # Each can be asked for again by its seed and its id, in another batch.
    for own in owns:
        again = {"problem_id": own["problem_id"]}
        reply = chat(served.http, question(seed=own["seed"], tsi=again))
        own_again = reply.json()["tsi"]
        assert own_again["answer_posterior"] == own["answer_posterior"]
        assert own_again["log_evidence"] == own["log_evidence"]


@pytest.mark.parametrize(
    "other",
    [{"tsi": {"budget": 8}}, {"tsi": {"method": "dvts"}}, {"temperature": 0.5}],
)
def test_other_settings_are_another_batch(served, other):
    (first,) = hold(served)
    others = [served.later(question()), served.later(question(**other))]
    wait_until(lambda: served.worker.num_open == 3)
    served.engine.gate.set()
    batches = [reply.result().json()["tsi"]["batch"] for reply in (first, *others)]
    assert batches == [1, 1, 1]
    temperatures = [each["temperature"] for each in served.engine.settings]
    assert other.get("temperature") in temperatures


def test_a_method_of_rounds_can_be_abandoned_too(served):
    (held,) = hold(served, tsi={"method": "adaptive_consistency"})
    wait_until(lambda: served.engine.num_progress or held.done())
    assert served.engine.num_progress
    served.engine.gate.set()
    assert held.result().json()["tsi"]["cost"]["rollouts"] <= 4


def test_a_temperature_scales_that_of_the_proposals(served):
    for temperature, proposal in ((None, 0.25), (0.5, 0.125)):
        fields = question(temperature=temperature, tsi={"method": "power_smc"})
        assert chat(served.http, fields).json()["tsi"]["temperature"] == (
            temperature or 1.0
        )
        assert served.engine.settings[-1]["proposal_temperature"] == proposal
        assert served.engine.settings[-1]["temperature"] == temperature


def test_equal_seeds_of_one_id_never_share_a_batch(served):
    held = hold(served, 3, seed=5)
    served.engine.gate.set()
    owns = [reply.result().json()["tsi"] for reply in held]
    assert [own["batch"] for own in owns] == [1, 1, 1]
    assert {own["seed"] for own in owns} == {5}
    assert {own["problem_id"] for own in owns} == {"question"}
    assert owns[0]["answer_posterior"] == owns[2]["answer_posterior"]


def test_one_request_does_not_make_the_others_of_its_batch_fail(served):
    (first,) = hold(served)
    others = [served.later(question(text)) for text in ("a?", "b?")]
    wait_until(lambda: served.worker.num_open == 3)
    # Of the first, of the batch of the others, and of one of these alone.
    refusal = ConfigurationError("This does not fit.")
    served.engine.fails = [None, refusal, refusal]
    served.engine.gate.set()
    codes = sorted(reply.result().status_code for reply in (first, *others))
    assert codes == [200, 200, 400]
    assert [len(prompts) for prompts in served.engine.prompts] == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigurationError("Raise N."), 400, "Raise N."),
        (
            lambda problems: ProblemError(
                {problem.id: OutOfMemoryError("No memory.") for problem in problems}
            ),
            503,
            "No memory.",
        ),
        (ProblemError({"question": ValueError("secret")}), 500, FAILED),
        (ZeroDivisionError("secret"), 500, FAILED),
        (SystemExit("secret"), 500, FAILED),
        (ServerError("secret"), 502, "server of the policy"),
    ],
)
def test_an_error_of_a_run_ends_its_requests_alone(served, error, status, words):
    for stream in (False, True):
        served.engine.fails = [error]
        reply = chat(served.http, question(stream=stream))
        if stream:
            assert reply.status_code == 200
            line = reply.text.rstrip().splitlines()[-1]
            found = json.loads(line.removeprefix("data: "))
        else:
            assert reply.status_code == status
            found = reply.json()
        assert words in found["error"]["message"]
        assert "secret" not in reply.text
        assert chat(served.http, question()).status_code == 200


def test_a_client_that_goes_away_takes_its_request_with_it():
    served = Served(max_concurrent=2)
    with listening(served) as (port, _):
        served.engine.gate.clear()
        sockets = []
        for stream in (True, False):
            sockets.append(send(port, question(stream=stream)))
            wait_until(lambda: served.worker.num_open == len(sockets))
            wait_until(lambda: served.engine.prompts)
        # The second waits, and is forgotten; the first runs, and is ended.
        while sockets:
            sockets.pop().close()
            wait_until(lambda: served.worker.num_open == len(sockets))
        assert not served.engine.gate.is_set()
        assert served.engine.calls == []


def test_a_server_that_stops_refuses_what_waits_and_ends_what_runs(served):
    held = hold(served, 2)
    served.worker.drain()
    assert held[1].result().status_code == 503
    assert chat(served.http, question()).status_code == 503
    assert not held[0].done()
    served.engine.gate.set()
    assert held[0].result().status_code == 200


@pytest.mark.parametrize("deaf", [False, True])
def test_a_run_without_end_is_ended_with_the_server(deaf, monkeypatch, caplog):
    monkeypatch.setattr("tsi.experiments.serving.engine_worker.STOP_SECONDS", 0.1)
    served = Served()
    if deaf:
        # As the engine is while it compiles: it does not tell of its progress.
        wait = served.engine.gate.wait
        served.engine.gate.wait = lambda seconds: wait()
    with listening(served) as (port, server):
        served.engine.gate.clear()
        connection = send(port, question())
        wait_until(lambda: served.engine.prompts)
        server.handle_exit(signal.SIGTERM, None)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"stopping" in answer
    # A run that tells of its progress is ended before the server gives up waiting.
    assert ("Cancel 1 running task" in caplog.text) == deaf
    assert served.worker.join() != deaf
    served.engine.gate.set()


def test_a_stream_has_the_text_step_by_step_and_then_the_rest(served):
    fields = question(seed=3, stream_options={"include_usage": True})
    whole = chat(served.http, fields).json()
    reply = chat(served.http, {**fields, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.text)
    *pieces, last, usage = events
    texts = [piece["choices"][0]["delta"]["content"] for piece in pieces]
    assert texts[0] == ""
    assert len(texts) > 2
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == "stop"
    for name in ("answer", "answer_posterior", "seed", "log_evidence"):
        assert last["tsi"][name] == whole["tsi"][name]
    assert usage["choices"] == []
    assert last["usage"] == usage["usage"] == whole["usage"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


def test_a_stream_is_kept_open_while_the_answer_is_computed(served, monkeypatch):
    monkeypatch.setattr("tsi.experiments.serving.app.KEEP_ALIVE_SECONDS", 0.01)
    run = served.engine.run

    def run_slowly(*arguments, **settings):
        wait_until(lambda: settings["progress"](None) is None and next(turns) > 20)
        return run(*arguments, **settings)

    turns = iter(range(100))
    served.engine.run = run_slowly
    reply = chat(served.http, question(stream=True))
    assert ": computing\n\n" in reply.text
    assert events_of(reply.text)[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_log_has_neither_tokens_nor_questions(caplog):
    served = Served(bearer=Bearer("se-cret"))
    with caplog.at_level(logging.DEBUG), served.client() as http:
        right = {"authorization": "Bearer se-cret"}
        chat(http, question("private?"), headers=right)
        chat(http, question("private?"), headers={"authorization": "Bearer wr-ong"})
        http.get("/v1/models?api_key=se-cret", headers=right)
        http.get("/se-cret", headers=right)
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("tsi")]
    assert len(lines) == 4
    assert lines[0].startswith("POST /v1/chat/completions 200")
    assert "401" in lines[1]
    assert lines[3].startswith("GET other 404")
    for word in ("se-cret", "wr-ong", "private"):
        assert word not in "".join(lines)


def test_the_number_of_connections_is_bounded():
    served = Served()
    with contextlib.ExitStack() as stack:
        port, _ = stack.enter_context(listening(served, limit_concurrency=3))
        for _ in range(3):
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            stack.enter_context(connection)
        last = stack.enter_context(
            socket.create_connection(("127.0.0.1", port), timeout=60)
        )
        last.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert last.recv(100).startswith(b"HTTP/1.1 503")
