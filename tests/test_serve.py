"""`tsi serve` with the embedded models, in this process and as a command."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import LONGEST, free_port
from serving import HOST, chat, events_of
from small_checkpoints import bpe_tokenizer, small_config, small_model
from starlette.testclient import TestClient

from tsi.errors import ConfigurationError, PromptTooLongError, UnknownNameError
from tsi.experiments import embedded_world
from tsi.experiments.cli import main
from tsi.experiments.model_options import ModelOptions
from tsi.experiments.plans.run_method import run_method
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.serving.app import make_app
from tsi.experiments.serving.engine_worker import AbandonedError, EngineWorker
from tsi.experiments.serving.limits import Limits
from tsi.experiments.serving.load_service import load_service
from tsi.experiments.serving.winner import choose_particle, choose_winner
from tsi.experiments.tasks import get_task
from tsi.models.loading.checkpoint import save
from tsi.models.tokens.char_tokenizer import char_tokenizer

PROBLEM = "7*8+5-9"
MODEL = "chain-policy"
SEED = 3


def load(**changes):
    settings = {
        "has_policy": False,
        "method": "smc",
        "budget": 4,
        "model_name": None,
        "limits": Limits(),
    }
    problems = changes.pop("problems", ProblemOptions())
    load_world = changes.pop("load_world", ModelOptions().world)
    return load_service(problems, load_world, **(settings | changes))


@pytest.fixture(scope="module")
def service():
    return load()


@pytest.fixture(scope="module")
def served(service):
    worker = EngineWorker(service.world, 4)
    with TestClient(make_app(service, worker), base_url=HOST) as client:
        yield client


def question(text=PROBLEM, **fields):
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "seed": SEED, **fields}


@pytest.fixture(scope="module")
def solved():
    """What `tsi solve` computes of the same problem with the same seed."""
    problem = get_task("chain").problem(PROBLEM)
    world = embedded_world("chain", [problem])
    (result,) = run_method(world, "smc", jax.random.key(SEED), [problem], 4)
    return result


@pytest.mark.long
def test_a_seed_gives_the_answer_of_tsi_solve(served, solved):
    reply = chat(served, question()).json()
    own = reply["tsi"]
    assert own["answer"] == solved.selected
    posterior = {a["answer"]: a["probability"] for a in own["answer_posterior"]}
    assert posterior == pytest.approx(solved.answer_posterior, abs=1e-6)
    assert own["log_evidence"] == pytest.approx(solved.log_evidence, abs=1e-5)
    assert own["cost"]["generated_tokens"] == solved.ledger.generated_tokens
    assert (own["method"], own["budget"], own["seed"]) == ("smc", 4, SEED)
    (choice,) = reply["choices"]
    winner = own["particle"]
    assert choice["message"]["content"] == solved.texts[winner]
    assert solved.answers[winner] == solved.selected
    assert choice["finish_reason"] == "stop"
    assert "genealogy" not in own


def test_the_genealogy_comes_when_it_is_asked_for(served, solved):
    reply = chat(served, question(tsi={"genealogy": True})).json()
    tree = reply["tsi"]["genealogy"]
    assert tree["ancestors"] == solved.steps.ancestors.tolist()
    assert ["".join(p["steps"]) for p in tree["particles"]] == solved.texts
    assert [p["answer"] for p in tree["particles"]] == solved.answers
    weights = np.array([p["weight"] for p in tree["particles"]])
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(np.log(weights * 4), solved.log_weights, atol=1e-5)
    np.testing.assert_allclose(tree["rewards"], solved.steps.rewards, atol=1e-6)


def test_tokens_are_those_of_the_prompt_and_of_the_text(served, service):
    reply = chat(served, question()).json()
    text = reply["choices"][0]["message"]["content"]
    tokenizer = service.tokenizer
    assert reply["usage"] == {
        "prompt_tokens": len(tokenizer.encode_prompt(f"{PROBLEM}:")),
        "completion_tokens": len(tokenizer.encode(text)),
        "total_tokens": sum(list(reply["usage"].values())[:2]),
    }
    assert reply["tsi"]["cost"]["generated_tokens"] > len(tokenizer.encode(text))
    cut = chat(served, question(max_tokens=3)).json()
    assert cut["choices"][0]["message"]["content"] == text[:3]
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 3
    assert cut["tsi"]["answer"] == reply["tsi"]["answer"]


def test_a_stream_ends_with_the_same_extension(served, solved):
    events = events_of(chat(served, question(stream=True)).text)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": ""}
    whole = "".join(delta.get("content", "") for delta in deltas)
    assert whole == solved.texts[events[-1]["tsi"]["particle"]]
    assert events[-1]["tsi"]["answer"] == solved.selected
    assert events[-1]["usage"]["prompt_tokens"] > 0


def test_a_run_that_is_abandoned_leaves_the_engine_as_it_was(served, service, solved):
    def abandon(progress):
        raise AbandonedError

    problem = get_task("chain").problem(PROBLEM)
    with pytest.raises(AbandonedError):
        run_method(
            service.world, "smc", jax.random.key(0), [problem], 4, progress=abandon
        )
    own = chat(served, question()).json()["tsi"]
    assert own["log_evidence"] == pytest.approx(solved.log_evidence, abs=1e-5)


def test_what_the_model_cannot_read_is_refused(served):
    for text in ("7*8+5-9 please", "1+1"):
        reply = chat(served, question(text))
        assert reply.status_code == 400
        assert "not a chain problem" in reply.json()["error"]["message"]


def test_a_text_is_cut_at_a_character(solved):
    tokenizer = char_tokenizer("*8=56\n+1-9é")
    particle = choose_particle(solved)
    texts = [["é8\n", "=5"]] * len(solved.texts)
    parts = solved.particles._replace(step_texts=texts, truncated=None)
    result = solved._replace(particles=parts)
    whole = choose_winner(result, tokenizer, None)
    assert (whole.pieces, whole.tokens, whole.is_cut) == (("é8\n", "=5"), 5, False)
    cut = choose_winner(result, tokenizer, 4)
    assert (cut.pieces, cut.tokens, cut.is_cut) == (("é8\n", "="), 4, True)
    assert choose_winner(result, tokenizer, 3).pieces == ("é8\n",)
    assert whole.particle == particle


@pytest.mark.parametrize(
    ("rule", "weights", "rewards", "truncated", "winner"),
    [
        ("posterior", [0.1, 0.5, 0.4, 0.0], [0.9, 0.1, 0.2, 0.3], [0, 0, 0, 0], 2),
        ("argmax", [0.1, 0.5, 0.4, 0.0], [0.9, 0.1, 0.2, 0.3], [0, 0, 0, 0], 0),
        ("vote", [0.25] * 4, [np.nan, 0.1, 0.2, 0.3], [0, 0, 0, 0], 3),
        ("posterior", [0.4, 0.2, 0.3, 0.1], [0.5] * 4, [1, 0, 0, 0], 2),
        ("posterior", [0.25] * 4, [0.5] * 4, [0, 0, 0, 0], 0),
    ],
)
def test_the_winner_has_the_answer_that_the_rule_selects(
    solved, rule, weights, rewards, truncated, winner
):
    particles = solved.particles._replace(
        answers=["1", "2", "1", "1"],
        log_weights=np.log(np.maximum(weights, 1e-30)),
        rewards=np.array(rewards),
        truncated=np.array(truncated, bool),
    )
    result = solved._replace(
        particles=particles,
        posterior=solved.posterior._replace(selected="1"),
        estimand=solved.estimand._replace(select=rule),
    )
    assert choose_particle(result) == winner


def test_a_question_without_an_answer_has_a_text(solved):
    none = [None] * 4
    particles = solved.particles._replace(
        answers=none, log_weights=np.log([0.1, 0.2, 0.6, 0.1]), truncated=None
    )
    posterior = solved.posterior._replace(selected=None)
    result = solved._replace(particles=particles, posterior=posterior)
    assert choose_particle(result) == 2


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": "magic"}, UnknownNameError, "no method named"),
        ({"budget": 65}, ConfigurationError, "--max-budget, 64"),
        ({"method": "pimh", "budget": 3}, ConfigurationError, "between 4 and"),
        (
            {"load_world": ModelOptions(reward="outcome-verifier").world},
            ConfigurationError,
            "questions of clients have none",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(changes, error, words):
    with pytest.raises(error, match=words):
        load(**changes)


def load_language_model(folder, **limits):
    config = small_config(num_layers=1, vocab_size=400, max_length=1024, eos_ids=(2,))
    save(small_model(config), config, folder, tokenizer=bpe_tokenizer())
    return load(
        problems=ProblemOptions(max_steps=2, max_step_tokens=8, max_tokens=12),
        load_world=ModelOptions(policy=str(folder), reward="none").world,
        has_policy=True,
        method="self_consistency",
        budget=2,
        limits=Limits(**limits),
    )


def test_a_prompt_that_is_too_long_without_a_question_is_known_at_the_start(tmp_path):
    with pytest.raises(ConfigurationError, match="--max-prompt-tokens is 5; raise it"):
        load_language_model(tmp_path, max_prompt_tokens=5)


def test_a_context_that_is_shorter_than_the_longest_prompt_is_refused(tmp_path):
    with pytest.raises(PromptTooLongError, match="--max-prompt-tokens, does not fit"):
        load_language_model(tmp_path)


def test_a_language_model_reads_a_conversation(tmp_path):
    service = load_language_model(tmp_path, max_prompt_tokens=100)
    assert service.offer.model == tmp_path.name
    worker = EngineWorker(service.world, 4)
    with TestClient(make_app(service, worker), base_url=HOST) as client:
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 3 + 4?"},
            {"role": "assistant", "content": "7"},
            {"role": "user", "content": "the sum of 12 and 30?<|im_end|>"},
        ]
        fields = {"model": tmp_path.name, "messages": messages, "seed": 0}
        first, again = chat(client, fields).json(), chat(client, fields).json()
    expected = service.tokenizer.encode_chat(messages)
    assert first["usage"]["prompt_tokens"] == len(expected)
    assert first["choices"] == again["choices"]
    assert first["tsi"]["problem_id"] == "question"


COMMAND = (
    "import sys; from tsi.experiments.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.long
def test_the_command_serves_until_it_is_told_to_stop():
    port = free_port()
    command = [sys.executable, "-c", COMMAND, "serve", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--budget", "4", "--model-name", "tsi"],
        env=os.environ | {"TSI_SERVE_TOKEN": "se-cret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line == f"tsi at http://127.0.0.1:{port}/v1 (smc, N = 4)\n"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST)
        statuses = []
        for token in ("wr-ong", "se-cret"):
            headers = {
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
            }
            body = json.dumps({**question(), "model": "tsi"})
            connection.request("POST", "/v1/chat/completions", body, headers)
            reply = connection.getresponse()
            statuses.append(reply.status)
            content = json.loads(reply.read())
        assert statuses == [401, 200]
        assert content["model"] == "tsi"
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=LONGEST)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert error.count("POST /v1/chat/completions") == 2
    assert "se-cret" not in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "70000"], "port must be between"),
        (["--max-body", "much"], "as in 1MB"),
        (["--max-concurrent", "0"], "max_concurrent must be at least 1"),
        (["--model-name", "é"], "printable ASCII"),
        (["--token-file", "nowhere"], "nowhere"),
        (["--method", "magic", "--port", "0"], "no method named"),
    ],
)
def test_wrong_options_are_a_sentence(arguments, sentence, capsys):
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_known_before_models_are_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
