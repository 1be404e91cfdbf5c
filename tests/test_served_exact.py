"""Samplers over a server, against the enumeration of its model."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from local_spelling import LocalSpelling
from scripted_chain import EOS, PROBABILITIES, text_of, tokens_of
from scripted_server import ScriptedServer

from tsi import samplers
from tsi.problem import Problem
from tsi.reasoning.limits import SolutionLimits
from tsi.rewards.verifier import Verifier
from tsi.samplers.parts import potentials
from tsi.serving.connect import connect
from tsi.serving.engine import ServedEngine
from tsi.serving.scorer import HostScorer

LIMITS = SolutionLimits(max_steps=3, max_step_tokens=3, max_tokens=6)
PROMPT = [0, *tokens_of("1")]
NUM_PROBLEMS, N = 60, 16


def log_odds(question: str, text: str, ended: bool) -> float:
    """A reward that depends on the whole text."""
    del question, ended
    return 0.8 * text.count("1") - 0.5 * text.count("+") + 0.3 * text.count("\n")


def extract(text: str) -> str | None:
    digits = [letter for letter in text if letter in "12"]
    return digits[-1] if digits else None


def enumerate_solutions() -> dict[tuple[int, ...], tuple[float, list[float]]]:
    """All finished solutions: probability, and log-odds after each step."""
    found: dict[tuple[int, ...], tuple[float, list[float]]] = {}

    def grow(
        tokens: tuple[int, ...], step: tuple[int, ...], p: float, odds: list[float]
    ) -> None:
        last = tokens[-1] if tokens else PROMPT[-1]
        for token, q in enumerate(PROBABILITIES[last]):
            if q == 0:
                continue
            longer, newest = (*tokens, token), (*step, token)
            ended = token == EOS
            cut = "\n" in text_of(newest) or len(newest) == LIMITS.max_step_tokens
            full = len(longer) == LIMITS.max_tokens
            if not (ended or cut or full):
                grow(longer, newest, p * q, odds)
                continue
            after = [*odds, log_odds("", text_of(longer), False)]
            if ended:
                found[longer] = (p * q, after)
            elif not full and len(after) < LIMITS.max_steps:
                grow(longer, (), p * q, after)

    grow((), (), 1.0, [])
    return found


def truth(power: float = 1.0) -> tuple[float, dict[str | None, float]]:
    """Evidence and answer posterior under telescoping weights: the last odds."""
    masses: dict[str | None, float] = {}
    for tokens, (p, odds) in enumerate_solutions().items():
        answer = extract(text_of(tokens))
        masses[answer] = masses.get(answer, 0.0) + p**power * math.exp(odds[-1])
    evidence = sum(masses.values())
    return evidence, {a: m / evidence for a, m in masses.items()}


def engine_of(server: ScriptedServer, together: bool = False) -> ServedEngine:
    """An engine whose policy is asked for steps and nothing else."""
    policy = connect(server.url, together=together)
    if policy.dialect.takes_ids:
        policy = dataclasses.replace(policy, spelling=LocalSpelling())
    scorer = HostScorer(Verifier(log_odds, policy.spelling.decode))
    return ServedEngine(policy, scorer, LIMITS, delimiters=["\n"])


def check(
    engine: ServedEngine,
    sampler: object,
    seed: int = 0,
    *,
    truths: tuple[float, dict[str | None, float]] | None = None,
    num_problems: int = NUM_PROBLEMS,
) -> None:
    """Evidence and the expected mass of an answer, at |z| < 4."""
    evidence, posterior = truth() if truths is None else truths
    problems = [Problem(i, "1", "") for i in range(num_problems)]
    results = engine.run(sampler, jax.random.key(seed), problems, N, extract=extract)
    estimates = np.asarray([math.exp(r.log_evidence) for r in results])
    error = estimates.std(ddof=1) / math.sqrt(len(estimates))
    assert abs(estimates.mean() - evidence) < 4 * error
    assert error < 0.08 * evidence
    for answer in ("1", "2"):
        masses = np.asarray(
            [
                math.exp(r.log_evidence)
                * (r.answer_posterior.get(answer, 0.0) * (1 - r.unanswered))
                for r in results
            ]
        )
        error = masses.std(ddof=1) / math.sqrt(len(masses))
        assert abs(masses.mean() - evidence * posterior[answer]) < 4 * error


@pytest.fixture(scope="module", params=["llama.cpp", "vLLM", "text"])
def server(request):
    with ScriptedServer(request.param) as server:
        yield server


@pytest.mark.long
def test_smc_over_a_server_is_exact(server):
    check(engine_of(server), samplers.smc(potential=potentials.telescoping()))


@pytest.mark.long
def test_rows_of_a_step_may_share_a_request(server):
    if server.dialect == "text":
        pytest.skip("a server of text takes one prompt per request")
    sampler = samplers.smc(potential=potentials.telescoping())
    check(engine_of(server, together=True), sampler)
    assert any(isinstance(body["prompt"][0], list) for _, body in server.requests[-50:])
