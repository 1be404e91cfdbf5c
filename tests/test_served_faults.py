"""Servers that fail, restart, refuse, or end in the middle of a run."""

import asyncio
import email.utils
import itertools
import logging
import os
import signal
import threading
import time

import pytest
from scripted_server import ScriptedServer
from served_faults import (
    DIALECTS,
    PROBLEMS,
    SHORT,
    body,
    client_of,
    cut_short,
    edited,
    engine_over,
    numbers,
    policy_of,
    reset,
    run,
    slow,
    status,
)

from tsi.errors import (
    ProblemError,
    ServerError,
    Stopped,
)
from tsi.serving import client as client_module
from tsi.serving.address import KEY_VARIABLE
from tsi.serving.http_replies import own_message, seconds_of

KEY = "sk-secret/0123"
PATH = "/v1/completions"
ASK = {"prompt": [0, 1], "max_tokens": 1, "seed": 1}


@pytest.fixture(scope="module", params=list(DIALECTS))
def server(request):
    with ScriptedServer(request.param) as server:
        yield server


@pytest.fixture(scope="module")
def truth(server):
    """The numbers of a run without faults."""
    policy = policy_of(server)
    yield numbers(run(engine_over(policy)))
    policy.client.close()


@pytest.fixture(scope="module")
def vllm():
    with ScriptedServer("vLLM") as server:
        yield server


@pytest.fixture(autouse=True)
def no_faults(request, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield
    for name in ("server", "vllm"):
        if name in request.fixturenames:
            request.getfixturevalue(name).faults = iter(())


def test_faults_that_pass_change_no_result(server, truth):
    faults = [
        status(500, "boom"),
        None,
        status(429, **{"Retry-After": "0"}),
        reset,
        cut_short,
        None,
        body("<html>"),
        body('{"choices": ['),
        body("[" * 10**5),
        status(503),
        status(408),
        slow(2.0),
    ]
    server.faults = iter(faults)
    policy = policy_of(server, SHORT._replace(deadline=1.0))
    assert numbers(run(engine_over(policy))) == truth
    assert next(server.faults, "none") == "none"
    assert policy.client.traffic.failures >= len(faults) - 2
    policy.client.close()


def test_a_server_that_comes_back_loses_nothing(server, truth):
    threads = []

    def restart(request):
        threads.append(threading.Thread(target=server.restart, args=(0.05,)))
        threads[-1].start()

    server.faults = iter([None] * 7 + [restart])
    policy = policy_of(server)
    assert numbers(run(engine_over(policy))) == truth
    assert len(threads) == 1
    threads[0].join()
    policy.client.close()


def test_a_refused_step_fails_its_problem_alone(server, truth):
    server.faults = iter([None] * 5 + [status(400, '{"error": {"message": "no"}}')])
    policy = policy_of(server)
    with pytest.raises(ProblemError) as caught:
        run(engine_over(policy))
    ((failed, error),) = caught.value.failures.items()
    assert isinstance(error, ServerError)
    assert "status 400: no." in str(error)
    assert numbers(caught.value.results) == [t for t in truth if t[0] != failed]
    assert len(caught.value.results) == len(PROBLEMS) - 1
    policy.client.close()


def test_a_malformed_step_fails_its_problem_alone(server, truth):
    if server.dialect == "text":
        changed = edited(server, lambda events: ["stream", {"choices": [{"text": 3}]}])
    elif server.dialect == "vLLM":
        changed = edited(server, lambda a: a["choices"][0].update(token_ids=[-1]))
    else:
        name = "tokens" if server.dialect == "llama.cpp" else "output_ids"
        changed = edited(server, lambda a: a.update({name: [2**40]}))
    server.faults = iter([None] * 5 + [changed])
    policy = policy_of(server)
    with pytest.raises(ProblemError) as caught:
        run(engine_over(policy))
    ((failed, error),) = caught.value.failures.items()
    assert isinstance(error, ServerError)
    assert numbers(caught.value.results) == [t for t in truth if t[0] != failed]
    policy.client.close()


@pytest.fixture
def pythons_own_handler():
    # A process in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own_handler")
def test_a_signal_ends_a_run_whose_server_hangs(vllm):
    policy = policy_of(vllm)
    vllm.faults = itertools.repeat(slow(600.0))
    asked = len(vllm.requests)

    def interrupt():
        while len(vllm.requests) == asked:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped):
        run(engine_over(policy))
    thread.join()

    async def others():
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks()) - 1

    assert policy.client.call(others()) == 0
    policy.client.close()


def test_a_client_that_is_closed_ends_its_runs(vllm):
    policy = policy_of(vllm)
    threads = []

    def close(request):
        threads.append(threading.Thread(target=policy.client.close))
        threads[-1].start()
        return slow(60.0)(request)

    vllm.faults = iter([None] * 9 + [close])
    with pytest.raises(ProblemError, match="has been closed"):
        run(engine_over(policy))
    with pytest.raises(ProblemError, match="has been closed") as caught:
        run(engine_over(policy))
    assert len(caught.value.failures) == len(PROBLEMS)
    policy.client.close()
    with pytest.raises(ServerError, match="has been closed"):
        policy.client.call(policy.client.get("/version"))


def test_repetitions_end_with_the_last_error(vllm):
    vllm.faults = iter([status(500, "first"), *[status(502, "boom")] * 999])
    before = len(vllm.requests)
    with (
        client_of(vllm, total=0.2) as client,
        pytest.raises(ServerError, match="status 502: boom"),
    ):
        client.call(client.post(PATH, ASK))
    assert 3 < len(vllm.requests) - before < 900


def test_a_pause_that_the_server_asks_for_is_kept(vllm):
    vllm.faults = iter([status(429, **{"Retry-After": "0.3"})])
    with client_of(vllm) as client:
        began = time.monotonic()
        client.call(client.post(PATH, ASK))
        assert time.monotonic() - began > 0.3
        assert client.traffic.failures == 1


def test_a_pause_without_end_is_not_kept(vllm):
    vllm.faults = iter([status(429, **{"Retry-After": "1000000"})] * 2)
    with client_of(vllm, total=0.1) as client, pytest.raises(ServerError, match="429"):
        client.call(client.post(PATH, ASK))
    assert next(vllm.faults, None) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2.0),
        ("0.5", 0.5),
        *((text, None) for text in ("-1", "nan", "inf", "", None)),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_seconds_are_read_from_a_pause(header, seconds):
    assert seconds_of(header) == seconds


def test_a_date_is_a_pause_by_the_servers_own_clock(vllm):
    due, sent = "Wed, 21 Oct 2015 07:28:09 GMT", "Wed, 21 Oct 2015 07:28:00 GMT"
    assert seconds_of(due, sent) == 9.0
    assert seconds_of(due, due) is None
    assert seconds_of(due.removesuffix(" GMT"), sent) == 9.0
    in_an_hour = email.utils.formatdate(time.time() + 3600, usegmt=True)
    assert 3590 < seconds_of(in_an_hour, "nonsense") <= 3600
    vllm.faults = iter([status(429, **{"Retry-After": due, "Date": sent})] * 2)
    with client_of(vllm, total=0.5) as client:
        began = time.monotonic()
        with pytest.raises(ServerError, match="429"):
            client.call(client.post(PATH, ASK))
        assert time.monotonic() - began > 0.5


def test_a_deadline_ends_an_attempt(vllm):
    vllm.faults = itertools.repeat(slow(60.0))
    with (
        client_of(vllm, deadline=0.05, total=0.1) as client,
        pytest.raises(ServerError, match=r"did not answer within 0\.05 s"),
    ):
        client.call(client.post(PATH, ASK))


def test_waiting_for_a_connection_is_no_failure(vllm):
    vllm.faults = itertools.repeat(slow(0.1))

    async def many(client):
        await asyncio.gather(*(client.post(PATH, ASK) for _ in range(12)))

    with client_of(vllm, deadline=1.0, max_connections=1) as client:
        client.call(many(client))
        assert client.traffic.failures == 0


def test_a_redirect_is_not_followed(vllm):
    with ScriptedServer("vLLM") as other:
        there = {"Location": other.url + PATH}
        vllm.faults = iter([status(code, **there) for code in (301, 302, 307, 308)])
        with client_of(vllm, key=KEY) as client:
            for _ in range(4):
                with pytest.raises(ServerError, match="redirects") as caught:
                    client.call(client.post(PATH, ASK))
                assert KEY not in str(caught.value)
        assert other.requests == []


def test_errors_and_logs_do_not_have_the_key(vllm, caplog):
    caplog.set_level(logging.DEBUG)
    echoes = [
        status(400, f"Bearer {KEY} is bad"),
        status(401, f'{{"error": {{"message": "who is {KEY}?"}}}}'),
        body(f"<p>{KEY}</p>"),
        edited(vllm, lambda a: {KEY: a}),
        edited(vllm, lambda a: a["choices"][0].update(finish_reason=KEY)),
        edited(vllm, lambda a: a["choices"][0].update(token_ids=KEY)),
    ]
    policy = policy_of(vllm, SHORT._replace(total=0.0), KEY)
    assert KEY not in repr(policy) + repr(policy.client) + policy.name
    for echo in echoes:
        vllm.faults = iter([echo])
        with pytest.raises(ProblemError) as caught:
            run(engine_over(policy))
        error = caught.value
        text = str(error) + repr(error.failures) + "".join(error.tracebacks.values())
        assert KEY not in text
        assert all(isinstance(e, ServerError) for e in error.failures.values())
    assert KEY not in caplog.text
    policy.client.close()


def test_a_reply_that_is_too_long_is_refused(vllm):
    vllm.faults = iter([body(" " * 5000)])
    with (
        client_of(vllm, max_bytes=1000) as client,
        pytest.raises(ServerError, match="longer than 1,000 bytes"),
    ):
        client.call(client.post(PATH, ASK))


@pytest.fixture(scope="module")
def llama():
    with ScriptedServer("llama.cpp") as server:
        yield server


class TestStreams:
    """Events of llama.cpp's server."""

    ASK = ASK | {"n_predict": 3, "stream": True, "post_sampling_probs": False}

    def read(self, server, change, **settings):
        server.faults = iter([edited(server, change), *settings.pop("more", [])])
        with client_of(server, **settings) as client:
            events = client.call(client.events("/completion", self.ASK))
            return events, client.traffic.failures

    def test_an_event_may_repeat_a_long_prompt(self, llama):
        events, failures = self.read(llama, lambda e: e[-1].update(prompt="1" * 10**6))
        assert failures == 0
        assert len(events[-1]["prompt"]) == 10**6

    def test_an_event_that_is_too_long_is_refused(self, llama, monkeypatch):
        monkeypatch.setattr(client_module, "MAX_LINE", 2**12)
        with pytest.raises(ServerError, match="event of more than"):
            self.read(llama, lambda e: e[-1].update(prompt="1" * 10**6))

    def test_a_stream_without_its_end_is_repeated(self, llama):
        events, failures = self.read(llama, lambda e: e[:-1])
        assert failures == 1
        assert events[-1]["stop"]

    def test_an_error_in_a_stream_is_repeated(self, llama):
        error = {"error": {"code": 500, "message": "no slot"}}
        _, failures = self.read(llama, lambda e: ["stream", error])
        assert failures == 1

    def test_a_refusal_in_a_stream_is_not_repeated(self, llama):
        error = {"error": {"code": 400, "message": "too long"}}
        with pytest.raises(ServerError, match="middle of a reply: too long"):
            self.read(llama, lambda e: ["stream", error])

    def test_lines_that_are_no_events_are_ignored(self, llama):
        def add(events):
            return ["stream", "{}\n\n: ping\n\nevent: x\ndata: {}", *events[1:]]

        events, failures = self.read(llama, add)
        assert failures == 0
        assert events[:2] == [{}, {}]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"", ""),
        (b"\xff\n \x00a", "\ufffd \x00a."),
        (b'{"error": "x."}', "x."),
        (b'{"detail": [1]}', "[1]."),
        (b'{"error": {"message": "a\\nb"}}', "a b."),
        (b"[" * 10**5, "[" * 300 + "."),
    ],
)
def test_the_message_of_a_server_is_one_short_line(text, line):
    assert own_message(text) == line
