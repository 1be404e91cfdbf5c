"""A user's experiment, only from public names: policy, reward, problems and sampler.

`test_public_names.py` runs it and looks at what it imports.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import tsi
from tsi import experiments, rewards, samplers, weights

LIMITS = tsi.SolutionLimits(max_steps=3, max_step_tokens=6, max_tokens=18)
PROBLEMS = [tsi.Problem(f"sum-{a}", f"{a}+1:", str(a + 1)) for a in range(3)]


def score(texts):
    """Log-odds: digits are good, and so much the better the more there are."""
    return np.asarray([0.3 * sum(map(str.isdigit, text)) - 1.0 for text in texts])


def extract(text):
    digits = "".join(filter(str.isdigit, text))
    return digits[-1] if digits else None


def is_correct(problem, answer):
    return answer == problem.answer


class State(NamedTuple):
    log_weights: Any
    log_evidence: Any
    log_potentials: Any
    finished: Any


def importance_sampling():
    """Particles that are weighed by the product of the odds, and never resampled."""

    def init(key, num_particles):
        zeros = jnp.zeros(num_particles)
        return State(zeros, jnp.zeros(()), zeros, zeros > 0)

    def ask(key, state):
        return state, jnp.arange(state.log_weights.size)

    def tell(key, state, log_potentials, log_corrections, finished):
        gain = weights.sanitise(log_potentials + log_corrections)
        log_weights = state.log_weights + jnp.where(state.finished, 0.0, gain)
        mean = weights.log_mean_exp(log_weights)
        last = jnp.where(state.finished, state.log_potentials, log_potentials)
        new = State(
            jnp.where(mean > -math.inf, log_weights - mean, 0.0),
            state.log_evidence + mean,
            last,
            state.finished | finished,
        )
        return new, {}

    return tsi.Sampler(init, ask, tell, samplers.product().path_log_weight)


TASK = experiments.Task(
    name="sums",
    problems=lambda split, count, seed: PROBLEMS[:count],
    extract=extract,
    is_correct=is_correct,
    max_steps=LIMITS.max_steps,
    max_step_tokens=LIMITS.max_step_tokens,
    max_tokens=LIMITS.max_tokens,
)


def solve(policy, num_particles):
    """The own sampler on the own problems, with the own reward."""
    engine = tsi.reasoning_engine(
        policy,
        rewards.TextReward(score, policy.tokenizer.decode),
        LIMITS,
        delimiters=("\n",),
        forced_end=tsi.ForcedEnd(),
        max_rows=16,
    )
    key = jax.random.key(0)
    return engine.run(
        importance_sampling(), key, PROBLEMS, num_particles, extract=extract
    )


def curve(policy, place):
    """Rows of two published methods on the own task, with its own verifier."""

    def check(question, text, ended):
        return 2.0 if str(int(question[0]) + 1) in text else -2.0

    world = experiments.task_world(
        TASK,
        PROBLEMS,
        policy,
        tsi.load_reward("verifier", policy, LIMITS, checks={"verifier": check}),
        LIMITS,
        encode=policy.tokenizer.encode_prompt,
        ends=experiments.StepEnds(delimiters=("=",)),
        max_rows=16,
        settings={"reward": "the digit that is right"},
    )
    plan = experiments.make_plan(["best_of_n", "smc"], [2], 1)
    experiments.run_plan(plan, world, place, progress=False)
    return experiments.read_rows(place)
