"""The engine on steps whose very different lengths have a known distribution.

``python -m tsi.experiments.benchmarks.step_law`` prints one line of JSON with the
utilisation (the share of computed tokens that were used), including the end of the run,
when few rows are left. The last norm of the policy has scale zero, so that all tokens
have the same probability. The states of the boundary count the tokens of a step, and as
many tokens end the step as the hazard of the distribution requires. The engine itself
is unchanged. For a tiny policy it would compute all slots until the last row has ended,
since the host would be slower than that, so the policy has 5 million weights.

The length is a log-normal variable of mean 60 and sigma 1, rounded up and cut at 512. A
solution has eight such steps, with multinomial resampling after every step.
"""

import json
import sys
import time
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Float

from tsi.decoding.boundary import Boundary
from tsi.engine.engine import Engine
from tsi.experiments.benchmarks.filter_run import costs
from tsi.experiments.benchmarks.loading import peak_bytes
from tsi.experiments.command import exit_code
from tsi.models.decoder import LanguageModel
from tsi.models.decoder_config import DecoderConfig
from tsi.problem import Problem
from tsi.reasoning.target import ReasoningTarget
from tsi.rewards.reward import NoReward
from tsi.samplers.particle_filter import particle_filter

VOCABULARY = 4096
"""Number of tokens of equal probability; hazards are rounded to multiples of 1/4096."""


class Law(NamedTuple):
    """Problems, particles, steps, and the distribution of a step's length."""

    problems: int = 64
    particles: int = 16
    steps: int = 8
    mean: float = 60.0
    sigma: float = 1.0
    cut: int = 512
    max_rows: int = 1024


def hazards(law: Law) -> Float[np.ndarray, "C"]:
    """P(length = n | length >= n) for n = 1 ... cut; the last is 1."""
    normal = NormalDist(np.log(law.mean) - law.sigma**2 / 2, law.sigma)
    distribution = [normal.cdf(np.log(n)) if n else 0.0 for n in range(law.cut + 1)]
    distribution[-1] = 1.0
    cumulative = np.array(distribution)
    return np.diff(cumulative) / (1 - cumulative[:-1])


def length_probabilities(hazard: Float[np.ndarray, "C"]) -> Float[np.ndarray, "C"]:
    """P(length = n) for n = 1 ... cut."""
    survival = np.concatenate([[1.0], np.cumprod(1 - hazard)[:-1]])
    return survival * hazard


def counting_boundary(hazard: Float[np.ndarray, "C"], size: int) -> Boundary:
    """Ends a step of n tokens with probability ``hazard[n - 1]``, for uniform tokens.

    The number of tokens that end a step is an integer; its rounding error is carried
    over to the next length.
    """
    survival, carried = 1.0, 0.0
    ends = np.zeros((len(hazard), size), bool)
    for n, p in enumerate(length_probabilities(hazard)):
        carried += p
        count = min(size, round(size * carried / survival))
        ends[n, :count] = True
        carried -= survival * count / size
        survival *= 1 - count / size
        if survival == 0.0:
            ends[n:] = True
            break
    states = np.minimum(np.arange(len(hazard)) + 1, len(hazard) - 1)
    return Boundary(
        jnp.asarray(np.broadcast_to(states[:, None], ends.shape).astype(np.int32)),
        jnp.asarray(ends),
        jnp.zeros(size, bool),
    )


def uniform_policy(size: int, length: int) -> LanguageModel:
    """A small language model for which all tokens have the same probability."""
    config = DecoderConfig(
        vocab_size=size,
        width=256,
        hidden=1024,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_width=64,
        max_length=length,
    )
    policy = LanguageModel(config, rngs=nnx.Rngs(0))
    norm = policy.trunk.norm
    norm.scale[...] = jnp.zeros_like(norm.scale[...])
    return policy


def num_weights(policy: LanguageModel) -> int:
    """The number of weights of a language model."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(policy, nnx.Param)))


def run(law: Law) -> dict[str, Any]:
    """Run the filter on steps with this distribution."""
    max_tokens = law.steps * law.cut
    target = ReasoningTarget(
        counting_boundary(hazards(law), VOCABULARY),
        NoReward(),
        max_step_tokens=law.cut,
        max_tokens=max_tokens,
        max_steps=law.steps,
        log_truncation=0.0,
    )
    policy = uniform_policy(VOCABULARY, max_tokens + 64)
    engine = Engine(
        target,
        policy,
        None,
        encode=lambda prompt: [1] * 16,
        decode=lambda tokens: "",
        max_rows=law.max_rows,
    )
    problems = [Problem(i, "", "") for i in range(law.problems)]
    key, start_time = jax.random.key(0), time.perf_counter()
    results = engine.run(
        particle_filter(), key, problems, law.particles, extract=lambda text: None
    )
    seconds, run_costs = time.perf_counter() - start_time, costs(results)
    steps = law.problems * law.particles * law.steps
    return {
        "seconds": seconds,
        **run_costs,
        "mean_step_tokens": run_costs["generated_tokens"] / steps,
        "utilisation": getattr(getattr(engine, "report", None), "utilisation", None),
        "peak_bytes": peak_bytes(),
        "num_weights": num_weights(policy),
    }


def main(law: tyro.conf.OmitArgPrefixes[Law] = Law()) -> None:  # noqa: B008
    """Run the filter on steps with this distribution and print its costs.

    Args:
        law: problems, particles and lengths.
    """
    print(json.dumps(run(law)))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: tyro.cli(main)))
