"""`tsi serve` between a client and another server."""

import pytest
from aiohttp import web
from scripted_server import ScriptedServer
from serving import HOST, chat, events_of
from starlette.testclient import TestClient

from tsi.experiments.model_options import ModelOptions
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.serving.app import make_app
from tsi.experiments.serving.engine_worker import EngineWorker
from tsi.experiments.serving.limits import Limits
from tsi.experiments.serving.load_service import load_service

LIMITS = {"max_steps": 3, "max_step_tokens": 4, "max_tokens": 9}


@pytest.fixture(scope="module")
def server():
    with ScriptedServer("llama.cpp") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    models = ModelOptions(
        policy=f"served:{server.url}", reward="mean-log-prob", delimiter=("\n",)
    )
    service = load_service(
        ProblemOptions(**LIMITS),
        models.world,
        has_policy=True,
        method="smc",
        budget=4,
        model_name="tiny",
        limits=Limits(max_prompt_tokens=64),
    )
    worker = EngineWorker(service.world, 4)
    with TestClient(make_app(service, worker), base_url=HOST) as client:
        yield client


def question(text="1+1", **fields):
    messages = [{"role": "user", "content": text}]
    return {"model": "tiny", "messages": messages, "seed": 5, **fields}


def test_a_question_is_answered_by_steps_of_the_other_server(client, server):
    server.requests.clear()
    drawn = server.drawn
    reply = chat(client, question()).json()
    own = reply["tsi"]
    assert (own["method"], own["budget"]) == ("smc", 4)
    assert own["cost"]["generated_tokens"] == server.drawn - drawn > 4
    assert {path for path, _ in server.requests} == {"/completion"}
    assert set(reply["choices"][0]["message"]["content"]) <= set("12+\n")


def test_a_seed_gives_the_same_answer_as_far_as_the_servers_do(client):
    texts = [
        chat(client, question(seed=seed)).json()["choices"][0]["message"]["content"]
        for seed in (5, 5, 6, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_a_stream_has_the_text_of_the_winner(client):
    whole = chat(client, question()).json()["choices"][0]["message"]["content"]
    events = events_of(chat(client, question(stream=True)).text)
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(deltas) == whole


def test_an_error_of_the_other_server_is_a_sentence_and_passes(client, server):
    refusal = web.Response(status=400, text="no such sampler")
    server.faults = iter([lambda request: refusal])
    reply = chat(client, question(seed=1))
    assert reply.status_code == 502
    assert reply.json()["error"]["code"] == "policy_failed"
    assert "127.0.0.1" not in reply.text
    assert chat(client, question(seed=1)).status_code == 200
