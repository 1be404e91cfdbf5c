"""Log p of steps of which llama.cpp's server leaves out parts of a character."""

import itertools
import math

import numpy as np
import pytest
from aiohttp import web
from scripted_chain import EOS, PROBABILITIES
from scripted_server import ScriptedServer
from served_faults import engine_over, policy_of, run
from test_served_exact import check, truth

from tsi import samplers
from tsi.errors import CapabilityError, ProblemError, ServerError
from tsi.samplers.parts import potentials
from tsi.serving.connect import connect
from tsi.serving.dialect import Drawing
from tsi.serving.hidden_tokens import log_prob_at
from tsi.serving.llama_replies import streamed_step
from tsi.serving.step import Controls, StepRequest

PREFIX = (0, 1)
HIDDEN = (1, 3)
"""Tokens that have no event, so that about half of the steps lack some."""
POWER = samplers.power_smc(1.5, ramp_steps=2, potential=potentials.telescoping())


@pytest.fixture
def server():
    with ScriptedServer("llama.cpp") as server:
        server.hidden = HIDDEN
        yield server


@pytest.fixture
def policy(server):
    policy = policy_of(server, copies=4)
    yield policy
    policy.client.close()


def draw(policy, controls=Controls(), seed=3, count=3, end_ids=(EOS,)):  # noqa: B008
    drawing = Drawing("tiny", controls, ["\n"], (), end_ids, log_probs=True)
    requests = [StepRequest(PREFIX, 4, seed)] * count
    return policy.client.call(policy.draw(requests, drawing))


def draw_many(policy, **settings):
    return [step for seed in range(20) for step in draw(policy, seed=seed, **settings)]


def log_prob(tokens, temperature=1.0):
    total = 0.0
    for a, b in itertools.pairwise((*PREFIX[-1:], *tokens)):
        powers = PROBABILITIES[a] ** (1 / temperature)
        total += math.log(powers[b] / powers.sum())
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_steps_have_the_log_p_of_all_their_tokens(policy, temperature):
    controls = Controls(temperature=temperature)
    steps = draw_many(policy, controls=controls)
    lacking = [step for step in steps if set(step.tokens) & set(HIDDEN)]
    assert 10 < len(lacking) < len(steps)
    for step in steps:
        assert step.log_prob == pytest.approx(log_prob(step.tokens, temperature))


def test_steps_are_those_that_a_server_without_such_tokens_draws(server, policy):
    lacking = [step.tokens for seed in range(5) for step in draw(policy, seed=seed)]
    server.hidden = ()
    whole = [step.tokens for seed in range(5) for step in draw(policy, seed=seed)]
    assert lacking == whole


def test_greedy_steps_have_probability_one(policy):
    for step in draw(policy, Controls(temperature=0.0)):
        assert step.log_prob == 0.0


def test_a_short_list_is_followed_by_a_long_one(policy, monkeypatch, server):
    monkeypatch.setattr("tsi.serving.hidden_tokens.LISTS", (2, 7))
    step = next(s for s in draw(policy, seed=1) if set(s.tokens) & set(HIDDEN))
    assert step.log_prob == pytest.approx(log_prob(step.tokens))
    asked = [body["n_probs"] for _, body in server.requests if body.get("logit_bias")]
    assert {2, 7} <= set(asked)


def test_at_another_temperature_the_whole_list_is_asked_for(policy, monkeypatch):
    monkeypatch.setattr("tsi.serving.hidden_tokens.LISTS", (2, 7))
    steps = draw_many(policy, controls=Controls(temperature=0.5))
    for step in steps:
        assert step.log_prob == pytest.approx(log_prob(step.tokens, 0.5))


def test_power_smc_is_exact_with_such_characters(server):
    policy = policy_of(server)
    check(engine_over(policy), POWER, truths=truth(1.5), num_problems=30)
    assert any(body.get("n_probs", 0) > 1 for _, body in server.requests)
    policy.client.close()


def test_a_server_that_draws_another_step_is_refused(server, policy):
    server.ignores_seeds = True
    with pytest.raises(ServerError, match="another step for the same seed"):
        draw_many(policy)


@pytest.mark.parametrize("controls", [Controls(top_k=5), Controls(min_p=0.01)])
def test_truncated_policies_are_refused_where_log_p_is_needed(server, controls):
    policy = policy_of(server, log_probs="processed")
    engine = engine_over(policy, controls=controls)
    with pytest.raises(ProblemError, match="several tokens"):
        run(engine, POWER)
    policy.client.close()


def test_without_a_whole_token_nothing_is_known(policy):
    with pytest.raises(CapabilityError, match="whose text is whole"):
        draw_many(policy, end_ids=())


def test_a_policy_that_is_connected_needs_no_tokenizer_here(server):
    server.hidden = (3,)
    policy = connect(server.url)
    assert not policy.spelling.eos_ids
    steps = draw_many(policy, end_ids=())
    policy.client.close()
    assert any(3 in step.tokens for step in steps)
    for step in steps:
        assert step.log_prob == pytest.approx(log_prob(step.tokens))


def test_rows_that_share_a_request_without_a_seed_are_refused(policy):
    drawing = Drawing("tiny", Controls(), ["\n"], (), (EOS,), log_probs=True)
    requests = [StepRequest((*PREFIX, i), 4, 1) for i in (1, 2, 3)]

    def draw_together():
        for _ in range(20):
            policy.client.call(policy.draw(requests, drawing))

    with pytest.raises(CapabilityError, match="served-together"):
        draw_together()


def test_steps_that_lack_nothing_are_those_of_the_stream(server, policy):
    requests = [StepRequest(PREFIX, 4, 3)] * 4
    drawing = Drawing("tiny", Controls(), ["\n"], (), (EOS,), log_probs=True)
    call = policy.dialect.call(requests, drawing)
    stream = policy.client.call(policy.client.events(call.path, call.body))
    whole = [streamed_step(stream, i, 4, requests[i], drawing) for i in range(4)]
    assert 0 < sum(found.hidden > 0 for found in whole) < 4

    async def change(request):
        answer = server.answer(request.path, await request.json())
        for item, found in zip(answer, whole, strict=True):
            if not found.hidden:
                item["tokens"] = [2, 2, 2, 2]
        return web.json_response(answer)

    server.faults = iter([None, change])
    steps = policy.client.call(policy.draw(requests, drawing))
    for step, found in zip(steps, whole, strict=True):
        assert found.hidden or step.tokens == found.step.tokens
        assert step.log_prob == pytest.approx(log_prob(step.tokens))


@pytest.mark.parametrize("change", ["longer", "ended"])
def test_a_step_that_differs_after_what_the_stream_has_is_refused(
    server, policy, change
):
    async def differ(request):
        answer = server.answer(request.path, await request.json())
        if change == "longer":
            answer["tokens"] = [*answer["tokens"], 1]
        else:
            answer["stop_type"] = "limit"
        return web.json_response(answer)

    drawing = Drawing("tiny", Controls(), [], (), (EOS,), log_probs=True)
    for seed in range(20):
        request = StepRequest(PREFIX, 9, seed)
        (right,) = policy.client.call(policy.draw([request], drawing))
        if set(right.tokens) & set(HIDDEN) and right.end == "end":
            break
    server.faults = iter([None, differ])
    with pytest.raises(ServerError, match="another step"):
        policy.client.call(policy.draw([request], drawing))


def test_what_the_stream_has_read_is_what_counts(server, policy):
    async def find_all(request):
        answer = server.answer(request.path, await request.json())
        return web.json_response(
            [item | {"timings": {"cache_n": 2}} for item in answer]
        )

    server.hidden = (1, 2, 3, 4, 6)
    server.faults = iter([None, find_all])
    (step, *copies) = draw(policy)
    assert next(server.faults, None) is None
    assert step.prompt_tokens == len(PREFIX)
    assert step.cached_tokens == len(PREFIX) - 1
    assert {copy.prompt_tokens for copy in copies} == {0}


def test_methods_that_need_no_log_p_never_ask(server):
    policy = policy_of(server)
    run(engine_over(policy), samplers.smc())
    assert not any(body.get("n_probs") for _, body in server.requests)
    policy.client.close()


def test_a_list_becomes_a_distribution_at_any_temperature():
    named = {5: math.log(0.5), 6: math.log(0.3), 7: math.log(0.2), 8: -3.4e38}
    powers = np.asarray([0.5, 0.3, 0.2]) ** 2
    assert log_prob_at(named, 6, 0.5) == pytest.approx(math.log(0.09 / powers.sum()))
    assert log_prob_at(named, 6, 1.0) == math.log(0.3)
    assert log_prob_at(named, 8, 1.0) < -1e38
