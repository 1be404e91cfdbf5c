"""What can go wrong with a server, for `ScriptedServer.faults`; and small engines."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from aiohttp import web
from local_spelling import LocalSpelling
from scripted_server import ScriptedServer

from tsi import samplers
from tsi.problem import Problem
from tsi.reasoning.limits import SolutionLimits
from tsi.results.result import Result
from tsi.rewards.verifier import Verifier
from tsi.samplers.parts import potentials
from tsi.serving.abilities import Abilities
from tsi.serving.address import parse_address
from tsi.serving.client import Client, Patience
from tsi.serving.engine import ServedEngine
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import HostScorer, ScoredRow
from tsi.serving.sglang import Sglang
from tsi.serving.spelling import TextSpelling
from tsi.serving.text_server import TextServer
from tsi.serving.vllm import Vllm

DIALECTS: dict[str, Any] = {
    dialect.name: dialect for dialect in (LlamaCpp(), Vllm(), Sglang(), TextServer())
}
BRIEF = Patience(deadline=5.0, total=0.2, first_pause=0.01)
SHORT = Patience(deadline=5.0, total=30.0, first_pause=0.001, longest_pause=0.01)
LIMITS = SolutionLimits(max_steps=3, max_step_tokens=3, max_tokens=6)
PROBLEMS = [Problem(i, "1", "") for i in range(3)]
SMC = samplers.smc(potential=potentials.telescoping())


def row_of(
    tokens: Any,
    ends: Any,
    problem: int = 0,
    stopped: bool = False,
    log_prob: float = math.nan,
) -> ScoredRow:
    """A row as scorers see it."""
    return ScoredRow(problem, tuple(tokens), tuple(ends), stopped, stopped, log_prob)


def log_odds(question: str, text: str, ended: bool) -> float:
    """A reward that depends on the whole text."""
    del question, ended
    return 0.8 * text.count("1") - 0.5 * text.count("+") + 0.3 * text.count("\n")


def extract(text: str) -> str | None:
    digits = [letter for letter in text if letter in "12"]
    return digits[-1] if digits else None


def engine_over(policy: ServedPolicy, **settings: Any) -> ServedEngine:
    """A small engine over a policy."""
    scorer = HostScorer(Verifier(log_odds, policy.spelling.decode))
    limits = settings.pop("limits", LIMITS)
    return ServedEngine(policy, scorer, limits, delimiters=["\n"], **settings)


def policy_of(
    server: ScriptedServer,
    patience: Patience = SHORT,
    key: str | None = None,
    **abilities: Any,
) -> ServedPolicy:
    """A policy over a server that is not asked what it can do."""
    dialect = DIALECTS[server.dialect]
    known = {"context": 4096, "log_probs": "raw", "takes_ids": dialect.takes_ids}
    spelling = LocalSpelling() if dialect.takes_ids else TextSpelling(None, True, "t")
    return ServedPolicy(
        Client(parse_address(server.url), key, patience),
        dialect,
        Abilities(server.dialect, "tiny", **(known | abilities)),
        spelling,
    )


def client_of(server: ScriptedServer, **settings: Any) -> Client:
    """A client without a policy."""
    key = settings.pop("key", None)
    return Client(parse_address(server.url), key, SHORT._replace(**settings))


def run(engine: ServedEngine, sampler: Any = SMC, problems: Any = PROBLEMS) -> Any:
    """Results of a small run."""
    return engine.run(sampler, jax.random.key(3), problems, 4, extract=extract)


def numbers(results: list[Result]) -> list[Any]:
    """What of results must not depend on faults."""
    return [
        (r.problem_id, r.texts, np.asarray(r.log_weights).tolist(), r.log_evidence)
        for r in results
    ]


def status(code: int, text: str = "", **headers: str) -> Callable[[Any], Any]:
    """A reply of that status."""
    return lambda request: web.Response(status=code, text=text, headers=headers)


def body(text: str) -> Callable[[Any], Any]:
    """A reply of status 200 with that text."""
    return lambda request: web.Response(text=text, content_type="application/json")


async def reset(request: web.Request) -> Any:
    """The connection is reset."""
    assert request.transport is not None
    request.transport.abort()  # type: ignore[attr-defined]
    return web.Response()


async def cut_short(request: web.Request) -> Any:
    """A reply whose connection closes in the middle."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.close()
    return response


def slow(seconds: float) -> Callable[[Any], Any]:
    """A reply that takes its time."""

    async def wait(request: web.Request) -> None:
        await asyncio.sleep(seconds)

    return wait


def edited(
    server: ScriptedServer, change: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """The right reply with a change, which may return another one."""

    async def reply(request: web.Request) -> Any:
        answer = server.answer(request.path, await request.json())
        changed = change(answer)
        answer = answer if changed is None else changed
        if isinstance(answer, list) and answer and answer[0] == "stream":
            return await server.stream(request, answer[1:])
        return web.Response(text=json.dumps(answer), content_type="application/json")

    return reply
