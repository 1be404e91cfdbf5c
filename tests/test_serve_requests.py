"""`tsi serve` reads requests of unknown origin: what is refused, and how."""

import os
from pathlib import Path

import pytest
from serving import MODEL, Served, chat, question

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


def test_a_method_cannot_have_a_temperature_above_the_limit():
    error = refusal(question(tsi={"method": "smc@2.5"}))
    assert error.param == "tsi.method"
    assert "above 2" in str(error)
    assert parse_request(question(tsi={"method": "smc@0.5"}), OFFER).method == "smc@0.5"


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


def test_a_token_may_come_from_a_pipe(monkeypatch):
    monkeypatch.delenv("TSI_SERVE_TOKEN", raising=False)
    reading, writing = os.pipe()
    os.write(writing, b"from-a-pipe\n")
    os.close(writing)
    try:
        bearer = read_bearer(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    assert bearer.allows("Bearer from-a-pipe")


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
