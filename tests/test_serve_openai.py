"""The `openai` package as a client of `tsi serve`."""

import pytest
from serving import MODEL, Served, listening

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "How many?"}]


@pytest.fixture(scope="module")
def client():
    with (
        listening(Served()) as (port, _),
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        yield client


def ask(client, **fields):
    body = {"model": MODEL, "messages": QUESTION, "seed": 1, **fields}
    return client.chat.completions.create(**body)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def test_a_reply_has_the_text_the_usage_and_the_extension(client):
    reply = ask(client, extra_body={"tsi": {"method": "smc", "budget": 4}})
    (choice,) = reply.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert reply.usage.total_tokens > reply.usage.prompt_tokens > 0
    own = reply.model_extra["tsi"]
    assert (own["method"], own["budget"], own["seed"]) == ("smc", 4, 1)
    assert own["answer_posterior"]
    assert ask(client).choices[0].message.content == choice.message.content


def test_a_stream_has_the_same_text(client):
    events = list(ask(client, stream=True, stream_options={"include_usage": True}))
    deltas = [c.delta.content or "" for event in events for c in event.choices]
    assert "".join(deltas) == ask(client).choices[0].message.content
    assert any(event.usage for event in events)
    assert any("tsi" in (event.model_extra or {}) for event in events)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"n": 2}, "BadRequestError"),
        ({"model": "other"}, "NotFoundError"),
        ({"extra_body": {"tsi": {"method": "none"}}}, "BadRequestError"),
        ({"messages": []}, "BadRequestError"),
    ],
)
def test_errors_are_those_of_the_package(client, fields, error):
    with pytest.raises(getattr(openai, error)) as refused:
        ask(client, **fields)
    assert refused.value.body["message"].endswith(".")
