"""What is refused in one sentence, most of it before a request for a step."""

import dataclasses

import jax
import jaxtyping
import pytest
from scripted_server import ScriptedServer
from served_faults import (
    LIMITS,
    PROBLEMS,
    SHORT,
    SMC,
    edited,
    engine_over,
    extract,
    log_odds,
    policy_of,
    run,
)
from small_checkpoints import bpe_tokenizer

from tsi.errors import (
    CapabilityError,
    ConfigurationError,
    ProblemError,
    PromptTooLongError,
    ServerError,
    UnknownNameError,
)
from tsi.problem import Problem
from tsi.reasoning.limits import SolutionLimits
from tsi.rewards.aggregation import Aggregated
from tsi.rewards.reward import NoReward
from tsi.rewards.verifier import Verifier
from tsi.serving.address import KEY_VARIABLE, parse_address
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.scorer import HostScorer, NoScorer
from tsi.serving.spelling import TextSpelling
from tsi.serving.step import Controls

KEY = "sk-secret/0123"
PATH = "/v1/completions"
ASK = {"prompt": [0, 1], "max_tokens": 1, "seed": 1}


@pytest.fixture(scope="module")
def vllm():
    with ScriptedServer("vLLM") as server:
        yield server


@pytest.fixture
def unchecked_types():
    """The hook of the tests does not check the types of arguments, as for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def no_faults(request, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield
    for name in ("server", "vllm"):
        if name in request.fixturenames:
            request.getfixturevalue(name).faults = iter(())


def test_a_missing_or_wrong_key_is_one_sentence(monkeypatch):
    with ScriptedServer("vLLM", key=KEY) as server:
        with pytest.raises(ServerError, match=f"wants a key.*{KEY_VARIABLE}"):
            connect(server.url)
        monkeypatch.setenv(KEY_VARIABLE, "sk-wrong")
        with pytest.raises(ServerError, match=r"status 401\): wrong key") as caught:
            connect(server.url)
        assert "sk-wrong" not in str(caught.value)
        assert server.requests == []


def test_a_server_that_is_not_there_is_one_sentence():
    with pytest.raises(ServerError, match=r"cannot be reached .*Is the server running"):
        connect("http://127.0.0.1:9", patience=SHORT)
    label = "a" * 70
    with pytest.raises(ServerError):
        connect(f"http://{label}.example", patience=SHORT)


def test_a_model_that_is_not_there_is_one_sentence(vllm):
    with pytest.raises(UnknownNameError, match=r"no model at .* 'big'\. Known: tiny"):
        connect(f"{vllm.url}#big", patience=SHORT)


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8000", "ftp://a", "http://", "http://u:p@a", "http://a?b"],
)
def test_a_malformed_address_is_refused(address):
    with pytest.raises(ConfigurationError) as caught:
        parse_address(address)
    assert "u:p" not in str(caught.value)


def test_a_key_that_no_header_carries_is_refused(monkeypatch, vllm):
    monkeypatch.setenv(KEY_VARIABLE, "a\r\nX: b")
    with pytest.raises(ConfigurationError, match=KEY_VARIABLE):
        connect(vllm.url)


def test_prompts_that_are_too_long_are_refused_before_any_request(vllm):
    policy = policy_of(vllm, context=8)
    engine = engine_over(policy)
    before = len(vllm.requests)
    for act in (engine.check, lambda problems: run(engine, problems=problems)):
        with pytest.raises(PromptTooLongError, match=r"problem 'x' has 4 tokens"):
            act([Problem(0, "1", ""), Problem("x", "121", "")])
    assert len(vllm.requests) == before
    assert len(run(engine, problems=[Problem("x", "1", "")])) == 1
    policy.client.close()


def test_a_server_whose_context_is_full_is_one_sentence(vllm):
    def cut(answer):
        (choice,) = answer["choices"]
        choice["token_ids"], choice["finish_reason"] = [1], "length"

    vllm.faults = iter([edited(vllm, cut)])
    policy = policy_of(vllm)
    with pytest.raises(ProblemError, match="context is full"):
        run(engine_over(policy))
    policy.client.close()


@pytest.mark.parametrize(
    "controls",
    [
        Controls(temperature=-1.0),
        Controls(temperature=float("nan")),
        Controls(top_k=0),
        Controls(top_p=0.0),
        Controls(min_p=2.0),
        Controls(repetition_penalty=0.0),
    ],
)
def test_controls_out_of_range_are_refused(vllm, controls):
    policy = policy_of(vllm)
    with pytest.raises(ConfigurationError):
        engine_over(policy, controls=controls)
    policy.client.close()


def test_limits_and_strings_that_cannot_be_are_refused(vllm):
    policy = policy_of(vllm)
    with pytest.raises(ConfigurationError, match="max_steps must be at least 1"):
        engine_over(policy, limits=SolutionLimits(0, 3, 6))
    with pytest.raises(ConfigurationError, match="strings that end steps"):
        engine_over(policy, stop_strings=[""])
    with pytest.raises(ConfigurationError, match="max_rows"):
        engine_over(policy, max_rows=0)
    policy.client.close()


@pytest.mark.parametrize("takes_ids", [True, False])
@pytest.mark.parametrize("kind", ["delimiters", "stop_strings"])
def test_names_of_known_control_tokens_end_no_step(vllm, takes_ids, kind):
    tokenizer = bpe_tokenizer()
    spelling = tokenizer if takes_ids else TextSpelling(tokenizer, True, "t")
    policy = dataclasses.replace(policy_of(vllm), spelling=spelling)
    name = next(iter(tokenizer.special_ids))
    with pytest.raises(ConfigurationError, match="contains the control token"):
        ServedEngine(policy, NoScorer(), LIMITS, **{kind: [f"a{name}"]})
    ServedEngine(policy, NoScorer(), LIMITS, **{kind: ["<b>"]})
    policy.client.close()


def test_another_proposal_temperature_is_one_sentence(vllm, unchecked_types):
    policy = policy_of(vllm)
    engine = engine_over(policy)

    def run_at(temperature):
        engine.run(
            SMC,
            jax.random.key(0),
            PROBLEMS,
            4,
            extract=extract,
            proposal_temperature=temperature,
        )

    for temperature in (0.0, 0.25):
        with pytest.raises(CapabilityError, match=f"temperature {temperature:g}, and"):
            run_at(temperature)
    with pytest.raises(ConfigurationError, match="proposal_temperature is 'hot'"):
        run_at("hot")
    policy.client.close()


def test_a_reward_that_is_no_scorer_is_one_sentence(vllm, unchecked_types):
    policy = policy_of(vllm)
    verifier = Verifier(log_odds, policy.spelling.decode)
    with pytest.raises(ConfigurationError, match=r"must be a scorer.*not Verifier"):
        ServedEngine(policy, verifier, LIMITS)
    model = NoReward()
    for reward in (model, Aggregated(model, "min", 3)):
        with pytest.raises(ConfigurationError, match="takes a reward that is a Python"):
            HostScorer(reward)
    policy.client.close()
