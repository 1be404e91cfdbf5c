"""Steps, replays and powers over servers, against the enumeration of the model."""

import itertools
import math

import jax
import numpy as np
import pytest
from scripted_chain import BOS, EOS, PROBABILITIES, apply_controls, text_of
from scripted_server import ScriptedServer
from served_faults import (
    DIALECTS,
    engine_over,
    extract,
    policy_of,
    run,
)
from test_served_exact import check, truth

from tsi import samplers
from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem
from tsi.reasoning.limits import SolutionLimits
from tsi.samplers.parts import potentials
from tsi.serving.dialect import Drawing
from tsi.serving.spelling import TextSpelling
from tsi.serving.step import Controls, StepRequest

IDS = [name for name, dialect in DIALECTS.items() if dialect.takes_ids]
PREFIX, MOST = (BOS, 1), 3
SETTINGS = {
    "plain": Controls(),
    "sharp": Controls(temperature=0.5),
    "top": Controls(top_k=3),
    "greedy": Controls(temperature=0.0),
}


def enumerated(controls):
    """Probability of each step after the prefix."""
    found = {}

    def grow(step, p):
        if step and (step[-1] == EOS or "\n" in text_of(step) or len(step) == MOST):
            found[step] = found.get(step, 0.0) + p
            return
        row = apply_controls(
            PROBABILITIES[step[-1] if step else PREFIX[-1]],
            controls.temperature,
            controls.top_k or 0,
            1.0,
            0.0,
        )
        for token in np.flatnonzero(row).tolist():
            grow((*step, token), p * row[token])

    grow((), 1.0)
    return found


@pytest.fixture(scope="module", params=IDS)
def server(request):
    with ScriptedServer(request.param, "processed") as server:
        yield server


@pytest.mark.parametrize("setting", SETTINGS)
def test_steps_are_drawn_and_numbered_as_the_controls_say(server, setting):
    controls, copies, calls = SETTINGS[setting], 50, 10
    drawing = Drawing("tiny", controls, ("\n",), (), (EOS,), log_probs=True)
    policy = policy_of(server)
    counts = {}
    truth = enumerated(controls)
    for seed in range(calls):
        requests = [StepRequest(PREFIX, MOST, 10**6 * seed)] * copies
        for step in policy.client.call(policy.draw(requests, drawing)):
            counts[step.tokens] = counts.get(step.tokens, 0) + 1
            assert abs(step.log_prob - math.log(truth[step.tokens])) < 1e-6
            assert (step.end == "end") == (step.tokens[-1] == EOS)
            assert step.num_tokens == len(step.tokens)
    policy.client.close()
    total = copies * calls
    assert set(counts) <= set(truth)
    # Rare steps count together, so that the statistic has its distribution.
    often = [s for s, p in truth.items() if p * total >= 5]
    pairs = [(counts.get(s, 0), truth[s] * total) for s in often]
    rest = total - sum(n for n, _ in pairs), total - sum(m for _, m in pairs)
    pairs += [rest] if rest[1] > 1 else []
    squares = sum((n - m) ** 2 / m for n, m in pairs)
    free = len(pairs) - 1
    assert squares < free + 4 * math.sqrt(2 * free) + 1e-9
    assert setting != "greedy" or len(counts) == 1


@pytest.mark.parametrize("name", ["vLLM", "SGLang"])
def test_log_p_of_given_steps_is_that_of_the_model(name):
    with ScriptedServer(name) as server:
        policy = policy_of(server, reads_prompts=True)
        steps = list(itertools.islice(enumerated(Controls()), 40))
        found = policy.client.call(policy.log_probs([(PREFIX, s) for s in steps]))
        right = [math.log(enumerated(Controls())[step]) for step in steps]
        np.testing.assert_allclose(found, right, atol=1e-9)
        policy.client.close()


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama.cpp", "vLLM"])
def test_power_smc_over_a_server_is_exact(name):
    with ScriptedServer(name) as server:
        policy = policy_of(server)
        engine = engine_over(policy)
        sampler = samplers.power_smc(
            1.5, ramp_steps=2, potential=potentials.telescoping()
        )
        check(engine, sampler, truths=truth(1.5), num_problems=40)
        policy.client.close()


@pytest.mark.long
@pytest.mark.parametrize("name", ["vLLM"])
@pytest.mark.parametrize("how", ["ancestor_sampling", "backward_sampling"])
def test_particle_gibbs_with_replay_over_a_server_is_exact(name, how):
    sampler = samplers.particle_gibbs(
        num_sweeps=4, potential=potentials.telescoping(), **{how: True}
    )
    with ScriptedServer(name) as server:
        policy = policy_of(server, reads_prompts=True)
        problems = [Problem(i, "1", "") for i in range(30)]
        results = engine_over(policy).run(
            sampler, jax.random.key(1), problems, 32, extract=extract
        )
        policy.client.close()
    _, posterior = truth()
    for answer in ("1", "2"):
        found = [
            r.answer_posterior.get(answer, 0.0) * (1 - r.unanswered) for r in results
        ]
        error = np.std(found, ddof=1) / math.sqrt(len(found))
        assert abs(np.mean(found) - posterior[answer]) < 4 * error
        assert error < 0.05


def test_a_problem_may_be_alone_and_its_id_a_string(server):
    policy = policy_of(server)
    engine = engine_over(policy)
    (alone,) = run(engine, problems=[Problem("7", "1", "")])
    several = run(engine, problems=[Problem(i, "1", "") for i in ("a", "7", 7)])
    assert alone.texts == several[1].texts != several[2].texts
    policy.client.close()


def test_an_old_key_is_the_same_key(server):
    policy = policy_of(server)
    engine, problems = engine_over(policy), [Problem(0, "1", "")]
    args = {"extract": extract}
    new = engine.run(samplers.best_of_n(), jax.random.key(5), problems, 4, **args)
    old = engine.run(samplers.best_of_n(), jax.random.PRNGKey(5), problems, 4, **args)
    assert new[0].texts == old[0].texts
    policy.client.close()


def test_a_run_in_double_precision_has_the_same_texts(server):
    policy = policy_of(server)
    single = run(engine_over(policy))
    with jax.enable_x64(True):
        double = run(engine_over(policy))
    assert [r.texts for r in double] == [r.texts for r in single]
    np.testing.assert_allclose(
        [r.log_evidence for r in double], [r.log_evidence for r in single], rtol=1e-5
    )
    policy.client.close()


@pytest.mark.parametrize("limits", [(1, 1, 1), (4, 1, 4), (1, 9, 9), (9, 2, 3)])
def test_no_solution_exceeds_its_limits(server, limits):
    limits = SolutionLimits(*limits)
    policy = policy_of(server)
    before = len(server.requests)
    results = run(engine_over(policy, limits=limits, log_truncation=0.0))
    policy.client.close()
    for result in results:
        assert result.ledger.generated_tokens <= 4 * limits.max_tokens
        steps = result.particles.step_texts
        assert all(len(own) <= limits.max_steps for own in steps)
        assert all(len(text) <= 2 * limits.max_tokens for text in result.texts)
    for _, body in server.requests[before:]:
        body = body.get("sampling_params", body)
        names = ("n_predict", "max_tokens", "max_new_tokens")
        (most,) = [body[name] for name in names if name in body]
        assert 1 <= most <= min(limits.max_step_tokens, limits.max_tokens)


def test_names_of_control_tokens_are_refused_where_texts_are_sent():
    class Named(Tokenizer):
        """A tokenizer with one control token."""

        chat_template = bos_id = None

        def __init__(self):
            pass

        def encode(self, text, *, allow_special=False):
            named = allow_special and "<|im_end|>" in text
            return [1] if named else list(map(ord, text))

    spelling = TextSpelling(Named(), True, "t")
    assert spelling.decode(spelling.encode("a <b")) == "a <b"
    for act in (spelling.encode, spelling.encode_prompt):
        with pytest.raises(ConfigurationError, match="name of a control token"):
            act("a<|im_end|>b")


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("copies", [1, 4])
def test_the_ledger_has_what_the_server_was_sent_and_has_drawn(name, copies):
    with ScriptedServer(name) as server:
        policy = policy_of(server, copies=copies)
        results = run(engine_over(policy))
        policy.client.close()
    sent = [body.get("prompt", body.get("input_ids")) for _, body in server.requests]
    ledgers = [result.ledger for result in results]
    assert sum(ledger.sent_tokens for ledger in ledgers) == sum(map(len, sent))
    assert sum(ledger.generated_tokens for ledger in ledgers) == server.drawn
