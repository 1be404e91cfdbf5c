"""`tsi serve` between a client and another server."""

import pytest
from aiohttp import web
from scripted_chain import tokens_of
from scripted_server import ScriptedServer
from serving import HOST, chat, events_of
from starlette.testclient import TestClient

from tsi.experiments.model_options import ModelOptions
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.serving.app import make_app
from tsi.experiments.serving.conversation import Conversation
from tsi.experiments.serving.engine_worker import EngineWorker
from tsi.experiments.serving.limits import Limits
from tsi.experiments.serving.load_service import load_service
from tsi.experiments.worlds import served_world
from tsi.serving.served_reward import served_reward

LIMITS = {"max_steps": 3, "max_step_tokens": 4, "max_tokens": 9}


@pytest.fixture(scope="module")
def server():
    with ScriptedServer("llama.cpp") as server:
        yield server


def service_over(server):
    models = ModelOptions(
        policy=f"served:{server.url}", reward="mean-log-prob", delimiter=("\n",)
    )
    return load_service(
        ProblemOptions(**LIMITS),
        models.world,
        has_policy=True,
        method="smc",
        budget=4,
        model_name="tiny",
        limits=Limits(max_prompt_tokens=64),
    )


def client_of(service):
    worker = EngineWorker(service.world, 4)
    return TestClient(make_app(service, worker), base_url=HOST)


@pytest.fixture(scope="module")
def client(server):
    with client_of(service_over(server)) as client:
        yield client


@pytest.fixture
def chat_server():
    """A server of a chat model, and the chats that it has rendered."""
    with ScriptedServer("vLLM") as server:
        right, server.chats = server.answer, []

        def answer(path, body):
            if path == "/tokenize" and "messages" in body:
                server.chats.append(body["messages"])
                return {"tokens": render_chat(body["messages"])}
            if path == "/tokenize" and body.get("return_token_strs"):
                return {"tokens": [], "token_strs": list(body["prompt"])}
            return right(path, body)

        server.answer = answer
        yield server


def render_chat(messages):
    """A template that writes a "+" after each message."""
    return [0, *(id for m in messages for id in (*tokens_of(m["content"]), 3))]


CHAT = [
    {"role": "system", "content": "22"},
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "2+"},
    {"role": "user", "content": "1+1"},
]


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


def test_a_conversation_reaches_the_other_server_as_turns(chat_server, monkeypatch):
    given = []

    def keep_settings(name, policy, settings):
        given.append(settings)
        return served_reward(name, policy, settings)

    monkeypatch.setattr(served_world, "served_reward", keep_settings)
    service = service_over(chat_server)
    with client_of(service) as client:
        chat_server.requests.clear()
        reply = chat(client, {"model": "tiny", "messages": CHAT, "seed": 1}).json()
    assert CHAT in chat_server.chats
    assert all("\x1e" not in m["content"] for c in chat_server.chats for m in c)
    prompt = render_chat(CHAT)
    assert reply["usage"]["prompt_tokens"] == len(prompt)
    sent = [body["prompt"] for _, body in chat_server.requests]
    assert sent
    assert all(ids[: len(prompt)] == prompt for ids in sent)
    # What judges and reward models read.
    conversation = Conversation("1+1", "22", (("1", "2+"),)).text()
    assert given[0].encode(conversation) == prompt
    assert given[0].prompt_tokens >= 64
