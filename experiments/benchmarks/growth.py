"""Cost of one run against N, the length of solutions and that of prompts.

``python -m tsi.experiments.benchmarks.growth --sampler particle-filter`` runs one
sampler in this process and prints one line of JSON. The policy has random weights, and
every step has the same number of tokens, so that sizes are exactly as given; solutions
are cut at the last step. Potentials are the policy's own confidence in its last
tokens. The run is repeated and timed the second time, without compilation.

Bytes of caches are those of blocks, counted at their peak. ``unshared_bytes`` are those
that the same rows and stored prefixes would have without sharing.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from flax import nnx

from tsi.decoding.token_confidence import TokenConfidence
from tsi.engine.engine import Engine
from tsi.experiments.benchmarks.filter_run import costs
from tsi.experiments.benchmarks.loading import peak_bytes
from tsi.experiments.benchmarks.step_law import VOCABULARY, counting_boundary
from tsi.experiments.command import exit_code
from tsi.explorer import Explorer
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.problem import Problem
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.policy_confidence import PolicyConfidence
from tsi.sampler import Sampler
from tsi.samplers.mcts import mcts
from tsi.samplers.particle_filter import particle_filter
from tsi.samplers.particle_gibbs import particle_gibbs
from tsi.samplers.power_sampling import power_sampling

SWEEP_PARTICLES = 16
"""Particles of a sweep of particle Gibbs."""
Name = Literal["particle-filter", "mcts", "particle-gibbs", "power-sampling"]
SAMPLERS: dict[Name, Callable[[], Sampler | Explorer]] = {
    "particle-filter": particle_filter,
    "mcts": mcts,
    "particle-gibbs": lambda: particle_gibbs(
        particles_per_sweep=SWEEP_PARTICLES, ancestor_sampling=True
    ),
    "power-sampling": power_sampling,
}


class Growth(NamedTuple):
    """One run.

    Attributes:
        sampler: what is run.
        particles: N.
        tokens: of a solution.
        step_tokens: of a step; must divide `tokens`.
        prompt: tokens of the prompt.
    """

    sampler: Name = "particle-filter"
    particles: int = 16
    tokens: int = 256
    step_tokens: int = 32
    prompt: int = 64


def random_policy(length: int) -> LanguageModel:
    """A language model of 16 layers with 65 million random weights.

    It is so large that the engine runs it in one way from 16 rows on: for models whose
    token of all slots takes less than 2 GFLOP it has other blocks and bursts.
    """
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        width=512,
        hidden=2048,
        num_layers=16,
        num_heads=8,
        num_kv_heads=4,
        head_width=64,
        max_length=length,
    )
    return LanguageModel(config, rngs=nnx.Rngs(0))


def engine_of(work: Growth) -> Engine:
    """An engine whose solutions have exactly the given numbers of tokens."""
    step_ends = np.zeros(work.step_tokens)
    step_ends[-1] = 1.0
    confidence = TokenConfidence("log-prob")
    target = ReasoningTarget(
        counting_boundary(step_ends, VOCABULARY),
        PolicyConfidence(confidence, work.tokens, "last", work.step_tokens),
        max_step_tokens=work.step_tokens,
        max_tokens=work.tokens,
        max_steps=work.tokens // work.step_tokens,
        log_truncation=0.0,
    )
    return Engine(
        target,
        random_policy(work.prompt + work.tokens + 1),
        None,
        encode=lambda prompt: list(range(1, work.prompt + 1)),
        decode=lambda tokens: "",
        max_rows=max(64, work.particles),
    )


def run(work: Growth) -> dict[str, Any]:
    """Run the sampler twice, and return the costs of the second run."""
    engine, problems = engine_of(work), [Problem(0, "", "")]
    seconds = []
    for _ in range(2):
        start_time = time.perf_counter()
        results = engine.run(
            SAMPLERS[work.sampler](),
            jax.random.key(0),
            problems,
            work.particles,
            extract=lambda text: None,
        )
        seconds.append(time.perf_counter() - start_time)
    report = engine.report
    assert report is not None
    return {
        "seconds": seconds[-1],
        "cold_seconds": seconds[0],
        **costs(results),
        "shared_bytes": report.cache.shared,
        "held_bytes": report.cache.num_bytes,
        "unshared_bytes": report.cache.unshared,
        "prefill_bytes": report.prefill_bytes,
        "peak_bytes": peak_bytes(),
    }


def main(work: tyro.conf.OmitArgPrefixes[Growth] = Growth()) -> None:  # noqa: B008
    """Run one sampler and print its costs.

    Args:
        work: sampler and sizes.
    """
    print(json.dumps(run(work)))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
