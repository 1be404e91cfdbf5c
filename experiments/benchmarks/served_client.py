"""Processor time of the client of a served policy, per step of N rows.

``python -m tsi.experiments.benchmarks.served_client`` runs the weighted best-of-N and
the particle filter against a server without a model, in another process, whose steps
have 60 tokens each. One row is printed for each: milliseconds of the thread that talks
HTTP and of the thread that runs the sampler, per step of all N particles of a problem.
Processor time does not count waiting, so that a loaded machine changes it little.

Claims: at N = 32 at most 3 ms per step where the rows of a step share one request, and
10 ms where each has its own. (its_hub 1.2.0: 15 ms at N = 8 and 49 ms at N = 32.)
"""

import json
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import tyro

from tsi.experiments.benchmarks import instant_server
from tsi.experiments.command import exit_code
from tsi.problem import Problem
from tsi.reasoning.limits import SolutionLimits
from tsi.samplers.particle_filter import particle_filter
from tsi.serving.abilities import Abilities
from tsi.serving.address import Address
from tsi.serving.client import Client
from tsi.serving.engine import ServedEngine
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import NoScorer
from tsi.serving.spelling import ServerTokenizer

PROMPT_TOKENS = 100


class Work(NamedTuple):
    """What is run.

    Attributes:
        particles: N.
        problems: at least 3.
        steps: of each solution.
    """

    particles: int = 32
    problems: int = 18
    steps: int = 12


class NoText(ServerTokenizer):
    """A tokenizer without a server: texts are not read here."""

    def encode_prompt(self, prompt: str) -> list[int]:
        """The same ids for every prompt."""
        return list(range(PROMPT_TOKENS))

    def decode(self, ids: Any) -> str:
        """No text."""
        return ""


def measure(port: int, work: Work, together: bool) -> dict[str, Any]:
    """Milliseconds of processor time per step of all particles."""
    with Client(Address(f"http://127.0.0.1:{port}")) as client:
        policy = ServedPolicy(
            client,
            LlamaCpp(),
            Abilities("no model", None, copies=work.particles if together else 1),
            NoText(client, "llama.cpp", None, False),
            together,
        )
        max_tokens = work.steps * instant_server.STEP_TOKENS + 1
        limits = SolutionLimits(work.steps, instant_server.STEP_TOKENS, max_tokens)
        engine = ServedEngine(policy, NoScorer(), limits, max_rows=work.particles)
        problems = [Problem(i, str(i), "") for i in range(work.problems)]

        def spend(count: int) -> tuple[float, float, int]:
            start_time, before = time.thread_time(), client.traffic
            engine.run(
                particle_filter(),
                jax.random.key(0),
                problems[:count],
                work.particles,
                extract=lambda text: None,
            )
            after = client.traffic
            return (
                after.seconds - before.seconds,
                time.thread_time() - start_time,
                after.requests - before.requests,
            )

        # Each run traces the sampler's programs once, which the difference leaves out.
        spend(2)
        costs_of_two, costs_of_all = spend(2), spend(work.problems)
        steps = work.steps * (work.problems - 2)
        http, sampler, requests = (
            (b - a) / steps for a, b in zip(costs_of_two, costs_of_all, strict=True)
        )
    return {
        **work._asdict(),
        "together": together,
        "http_ms": round(1e3 * http, 2),
        "sampler_ms": round(1e3 * sampler, 2),
        "requests": requests,
    }


def main(work: tyro.conf.OmitArgPrefixes[Work] = Work()) -> int:  # noqa: B008
    """Print one row for one request per step, and one for a request per row."""
    server = subprocess.Popen(
        [sys.executable, "-m", instant_server.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        for together in (True, False):
            print(json.dumps(measure(port, work, together)), flush=True)
    finally:
        server.communicate()
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
