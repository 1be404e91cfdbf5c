"""Variables of chat templates, for policies behind servers."""

import pytest
from aiohttp import web
from scripted_chain import tokens_of
from scripted_server import ScriptedServer
from served_faults import client_of
from small_checkpoints import TEMPLATE, bpe_tokenizer

from tsi.errors import ConfigurationError
from tsi.experiments.model_options import ModelOptions
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.worlds.chosen_task import choose_questions
from tsi.experiments.worlds.language_policy import parse_switches
from tsi.problem import Problem
from tsi.serving.connect import spelling_of
from tsi.serving.identify import identify


@pytest.fixture(params=["llama.cpp", "vLLM"])
def server(request):
    """A server whose template reads `enable_thinking` and `effort`."""
    with ScriptedServer(request.param) as server:
        right, server.chats = server.answer, []

        def answer(path, body):
            if path == "/props":
                return right(path, body) | {"chat_template": "{{ messages }}"}
            if path not in ("/apply-template", "/tokenize") or "messages" not in body:
                return right(path, body)
            server.chats.append(body)
            switches = body.get("chat_template_kwargs", {})
            if switches.get("effort", "low") not in ("low", "high"):
                raise web.HTTPBadRequest(text="no such effort")
            text = "".join(message["content"] for message in body["messages"])
            text += "1" if switches.get("enable_thinking", True) else "2"
            text += {"low": "+", "high": "++"}[switches.get("effort", "low")]
            if path == "/apply-template":
                return {"prompt": text}
            return {"tokens": [0, *tokens_of(text)]}

        server.answer = answer
        yield server


def world_of(server, *switches, **settings):
    models = ModelOptions(
        policy=f"served:{server.url}",
        reward="none",
        delimiter=("\n",),
        template_switch=switches,
        **settings,
    )
    limits = {"max_steps": 3, "max_step_tokens": 4, "max_tokens": 9}
    task = choose_questions(ProblemOptions(**limits), "1", has_policy=True)
    return models.world(task, [Problem(0, "1", "")])


def prompt_over(server, switches):
    """A question as a server renders it; what the server can do is not measured."""
    with client_of(server) as client:
        identity = client.call(identify(client))
        return spelling_of(client, identity, None, switches).encode_prompt("1")


@pytest.mark.parametrize(
    ("switches", "prompt"),
    [
        ((), "11+"),
        (("enable_thinking=false",), "12+"),
        (("enable_thinking=true",), "11+"),
        (("enable_thinking=false", "effort=high"), "12++"),
    ],
)
def test_a_servers_template_gets_its_switches(server, switches, prompt):
    assert prompt_over(server, parse_switches(switches)) == [0, *tokens_of(prompt)]


def test_rows_record_the_switches(server):
    world = world_of(server, "enable_thinking=false")
    assert world.engine.encode("1") == [0, *tokens_of("12+")]
    assert world.settings["template_switches"] == {"enable_thinking": False}
    world.engine.policy.client.close()


def test_a_switch_that_the_template_does_not_read_is_refused(server):
    with pytest.raises(ConfigurationError, match="does not read think, or this"):
        prompt_over(server, {"think": False})
    before = len(server.requests)
    with pytest.raises(ConfigurationError, match="not written NAME=VALUE"):
        world_of(server, "think")
    assert len(server.requests) == before


@pytest.mark.parametrize("dialect", ["llama.cpp", "text"])
def test_a_switch_needs_a_template(dialect):
    sentence = {"llama.cpp": "has no chat template", "text": "cannot be set"}[dialect]
    with (
        ScriptedServer(dialect) as server,
        pytest.raises(ConfigurationError, match=sentence),
    ):
        prompt_over(server, {"a": True})


def test_a_tokenizer_of_this_machine_reads_its_switches(tmp_path):
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE + "{{ 'a' if enable_thinking else 'b' }}"
    tokenizer.save(tmp_path)
    with ScriptedServer("text") as server:
        own = {"served_tokenizer": str(tmp_path)}
        world = world_of(server, "enable_thinking=false", **own)
        assert chr(world.engine.encode("1")[-1]) == "b"
        assert world.settings["template_switches"] == {"enable_thinking": False}
        world.engine.policy.client.close()
        with pytest.raises(ConfigurationError, match="think"):
            world_of(server, "think=false", **own)
