"""What a server can do, as measured, and what methods may then ask of it."""

import itertools

import jax
import numpy as np
import pytest
from aiohttp import web
from scripted_chain import PROBABILITIES
from scripted_server import ScriptedServer
from served_faults import (
    LIMITS,
    PROBLEMS,
    SHORT,
    client_of,
    engine_over,
    extract,
    policy_of,
    reset,
    status,
)

from tsi.errors import CapabilityError, ServerError
from tsi.experiments.plans.methods import METHODS, get_method, sampler_of
from tsi.serving.connect import has_template
from tsi.serving.good_turing import kept_mass_is_one
from tsi.serving.identify import identify
from tsi.serving.probe import NUM_DRAWS, meaning_of, measure
from tsi.serving.step import Controls, ServedStep

PROMPT, TEXT = [0, 1], [1, 2]


def measured(dialect, log_probs="raw", prompt=PROMPT, **settings):
    """The abilities of a server with such settings."""
    with ScriptedServer(dialect, log_probs) as server:
        for name, value in settings.items():
            setattr(server, name, value)
        with client_of(server) as client:
            identity = client.call(identify(client))
            assert identity.server.startswith(
                "a server" if dialect == "text" else dialect
            )
            return client.call(measure(client, identity, prompt, TEXT))


@pytest.mark.parametrize(
    ("dialect", "log_probs", "meaning", "reads"),
    [
        ("llama.cpp", "raw", "processed", False),
        ("vLLM", "raw", "raw", True),
        ("vLLM", "processed", "processed", True),
        ("vLLM", "none", "none", False),
        ("SGLang", "raw", "raw", True),
        ("SGLang", "processed", "processed", True),
    ],
)
def test_log_probabilities_are_known_by_their_numbers(
    dialect, log_probs, meaning, reads
):
    found = measured(dialect, log_probs)
    assert found.log_probs == meaning
    assert found.reads_prompts == reads
    assert found.seeds
    assert found.takes_ids
    assert found.draws_all == (None if meaning == "none" else True)
    assert found.reuses_prompts == (dialect != "SGLang")
    assert (found.model, found.models) == ("tiny", ("tiny",))
    assert found.context == 4096
    assert found.num_weights == (1000 if dialect == "llama.cpp" else None)


def test_a_server_of_text_gives_no_numbers():
    found = measured("text", prompt=[49])
    assert (found.log_probs, found.takes_ids, found.seeds) == ("none", False, True)
    assert (found.context, found.draws_all, found.reuses_prompts) == (None, None, False)


def test_truncation_that_nobody_asked_for_is_seen():
    assert measured("vLLM", top_k=3).draws_all is False


def test_seeds_that_are_ignored_are_seen():
    assert not measured("vLLM", ignores_seeds=True).seeds


@pytest.mark.parametrize(("others", "repeats"), [(2, True), (3, False), (99, False)])
def test_steps_that_company_has_changed_are_drawn_again_alone(others, repeats):
    with ScriptedServer("vLLM") as server, client_of(server) as client:
        seeds = itertools.count(1000)

        async def draw_another(request):
            body = await request.json() | {"seed": next(seeds)}
            return web.json_response(server.answer(request.path, body))

        identity = client.call(identify(client))
        server.faults = iter([None] * 2 + [draw_another] * others)
        found = client.call(measure(client, identity, PROMPT, TEXT))
        assert found.seeds is repeats


def test_failures_that_pass_change_no_ability():
    faults = [None] * 3 + [status(500), reset, status(429), None] * 20
    assert measured("vLLM", faults=iter(faults)) == measured("vLLM")


def test_a_server_that_refuses_log_probabilities_has_none():
    refusals = [None] * 12 + [status(400, "no logprobs")] * NUM_DRAWS
    found = measured("vLLM", faults=iter(refusals))
    assert (found.log_probs, found.seeds) == ("none", True)


@pytest.mark.parametrize("failures", [2, 99])
def test_a_server_that_is_busy_is_not_taken_for_another(failures):
    with ScriptedServer("llama.cpp") as server, client_of(server) as client:
        right, busy = server.answer, iter([True] * failures)

        def answer(path, body):
            if path == "/props" and next(busy, False):
                raise web.HTTPServiceUnavailable
            return right(path, body)

        server.answer = answer
        if failures == 2:
            assert client.call(identify(client)).dialect.name == "llama.cpp"
        else:
            with pytest.raises(ServerError, match="status 503"):
                client.call(identify(client))


ERRORS = {
    400: web.HTTPBadRequest,
    500: web.HTTPInternalServerError,
    501: web.HTTPNotImplemented,
    503: web.HTTPServiceUnavailable,
}


def busy_at(server, path, failures, code=503):
    """Let a server fail at some of its requests: at that path, with that status."""
    right, busy = server.answer, iter([True] * failures)

    def answer(own_path, body):
        asked = own_path == path or path in (body or ())
        if asked and next(busy, False):
            raise ERRORS[code]
        return right(own_path, body)

    server.answer = answer


@pytest.mark.parametrize(("failures", "code"), [(9, 503), (9999, 503), (9999, 400)])
def test_a_busy_server_is_not_taken_for_one_without_a_template(failures, code):
    with ScriptedServer("vLLM") as server:
        busy_at(server, "messages", failures, code)
        patience = SHORT._replace(total=0.2)
        with client_of(server, **patience._asdict()) as client:
            if failures == 9:
                assert client.call(has_template(client, "tiny"))
            elif code == 400:
                assert not client.call(has_template(client, "tiny"))
            else:
                with pytest.raises(ServerError, match="status 503"):
                    client.call(has_template(client, "tiny"))


@pytest.mark.parametrize("code", [500, 501])
def test_a_server_whose_endpoint_fails_has_no_template(code):
    with ScriptedServer("vLLM") as server, client_of(server) as client:
        busy_at(server, "messages", 9999, code)
        assert not client.call(has_template(client, "tiny"))


def fail_at_copies(server, code):
    """Let a server fail at requests for several steps."""
    right = server.answer

    def answer(path, body):
        if body and body.get("n", 1) > 1:
            raise ERRORS[code]
        return right(path, body)

    server.answer = answer


@pytest.mark.parametrize("code", [500, 503])
def test_a_server_that_fails_at_several_steps_draws_no_copies(code):
    with ScriptedServer("vLLM") as server, client_of(server, total=0.2) as client:
        identity = client.call(identify(client))
        fail_at_copies(server, code)
        work = measure(client, identity, PROMPT, TEXT)
        if code == 500:
            assert client.call(work).copies == 1
        else:
            with pytest.raises(ServerError, match="status 503"):
                client.call(work)


@pytest.mark.parametrize("failures", [2, 9999])
def test_a_busy_server_is_not_taken_for_one_that_reads_no_prompts(failures):
    with ScriptedServer("vLLM") as server, client_of(server, total=0.2) as client:
        identity = client.call(identify(client))
        busy_at(server, "prompt_logprobs", failures)
        work = measure(client, identity, PROMPT, TEXT)
        if failures == 2:
            assert client.call(work).reads_prompts
        else:
            with pytest.raises(ServerError, match="status 503"):
                client.call(work)


def frequencies(probabilities, kept, runs, seed):
    """Verdicts on servers that draw from some of the tokens."""
    rng = np.random.default_rng(seed)
    drawn_from = np.where(kept, probabilities, 0.0)
    drawn_from = drawn_from / drawn_from.sum()
    log_p = np.log(np.maximum(probabilities, 1e-300))
    for _ in range(runs):
        tokens = rng.choice(len(log_p), NUM_DRAWS, p=drawn_from)
        yield kept_mass_is_one(
            [
                ServedStep((int(t),), 1, "limit", log_prob=float(log_p[t]))
                for t in tokens
            ]
        )


def zipf(size, exponent):
    weights = np.arange(1.0, size + 1) ** -exponent
    return weights / weights.sum()


@pytest.mark.parametrize(
    "probabilities",
    [PROBABILITIES[1], zipf(50, 3.0), zipf(5000, 1.5), zipf(5000, 0.8)],
    ids=["tiny", "steep", "even", "flat"],
)
def test_a_truncation_is_seen_and_none_is_seen_that_is_not_there(probabilities):
    whole = list(frequencies(probabilities, probabilities >= 0, 400, 1))
    assert whole.count(False) <= 2
    kept = probabilities >= 0.1 * probabilities.max()
    if probabilities[kept].sum() < 0.95:
        cut = list(frequencies(probabilities, kept, 50, 2))
        assert cut.count(False) >= 48


def test_a_few_certain_tokens_say_nothing():
    steps = [ServedStep((1,), 1, "limit", log_prob=-1e-6)] * NUM_DRAWS
    assert kept_mass_is_one(steps) is None
    assert meaning_of({(1,): -1e-6}, steps) == "unknown"
    assert meaning_of({}, steps) == "unknown"


REPLAY = {"particle_gibbs_ancestor", "particle_gibbs_backward"}
POWER = {name for name in METHODS if name.startswith("power_")}


@pytest.mark.parametrize(
    ("abilities", "controls", "refused"),
    [
        ({"log_probs": "raw", "reads_prompts": True}, Controls(), POWER),
        ({"log_probs": "raw", "reads_prompts": False}, Controls(), POWER | REPLAY),
        ({"log_probs": "none", "reads_prompts": False}, Controls(), POWER | REPLAY),
        (
            {"log_probs": "processed", "reads_prompts": True},
            Controls(temperature=0.5),
            POWER | REPLAY,
        ),
    ],
)
def test_methods_are_refused_before_any_request(abilities, controls, refused):
    with ScriptedServer("vLLM") as server:
        policy = policy_of(server, **abilities)
        engine = engine_over(policy, controls=controls)
        found, sentences = set(), set()
        for name in METHODS:
            method = get_method(name)
            try:
                engine.stream(
                    sampler_of(name, LIMITS.max_steps),
                    jax.random.key(0),
                    PROBLEMS,
                    max(4, method.min_particles),
                    extract=extract,
                    temperature=method.temperature,
                    proposal_temperature=method.proposal_temperature,
                )
            except CapabilityError as error:
                sentences.add(str(error))
                found.add(name)
        assert found == refused
        assert all(text.endswith(".") and len(text) < 400 for text in sentences)
        assert server.requests == []
        policy.client.close()


@pytest.mark.parametrize(
    ("log_probs", "controls", "knows"),
    [
        ("raw", Controls(), True),
        ("raw", Controls(top_k=3), False),
        ("processed", Controls(), True),
        ("processed", Controls(temperature=0.5), True),
        ("none", Controls(), False),
        ("unknown", Controls(), False),
    ],
)
def test_methods_of_power_need_numbers_of_the_distribution(log_probs, controls, knows):
    sampler = sampler_of("power_smc", LIMITS.max_steps)
    with ScriptedServer("vLLM") as server:
        policy = policy_of(server, log_probs=log_probs)
        engine = engine_over(policy, controls=controls)
        args = (sampler, jax.random.key(0), PROBLEMS, 4)
        if knows:
            engine.stream(*args, extract=extract)
        else:
            with pytest.raises(CapabilityError, match="needs log p"):
                engine.stream(*args, extract=extract)
        policy.client.close()


@pytest.mark.long
@pytest.mark.parametrize("name", ["mcts", "dvts", "particle_gibbs", "pimh", "greedy"])
def test_methods_run_over_a_server(name):
    method = get_method(name)
    size = 1 if method.is_deterministic else max(4, method.min_particles)
    with ScriptedServer("llama.cpp") as server:
        policy = policy_of(server, log_probs="none")
        results = engine_over(policy).run(
            sampler_of(name, LIMITS.max_steps),
            jax.random.key(1),
            PROBLEMS,
            size,
            extract=extract,
            temperature=method.temperature,
        )
        assert [r.problem_id for r in results] == [0, 1, 2]
        assert all(r.ledger.generated_tokens > 0 for r in results)
        policy.client.close()


def test_models_of_a_server_are_listed():
    def lists(data):
        with ScriptedServer("vLLM") as server, client_of(server) as client:
            right = server.answer
            server.answer = lambda path, body: (
                data if path == "/v1/models" else right(path, body)
            )
            return client.call(identify(client))

    found = lists({"data": [{"id": "a", "max_model_len": 10**400}, {"id": "b"}]})
    assert (found.model, found.models, found.context) == ("a", ("a", "b"), None)
    assert lists({"data": [{"id": "\ud800"}]}).model == "?"
    for bad in ([], {}, {"data": []}, {"data": {}}, {"data": [1]}, {"data": [{}]}):
        with pytest.raises(ServerError):
            lists(bad)
    with pytest.raises(ServerError, match="must be a text"):
        lists({"data": [{"id": "x" * 501}]})
