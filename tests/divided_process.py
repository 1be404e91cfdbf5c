"""One of several processes that hold one model together; see `test_divided_model.py`.

Prints a line of JSON per case: what `outcome` says of its results, or its error.
"""

import json
import os
import signal
import sys
import time

import jax
import numpy as np
import reading_rewards as kinds
import test_engine
import tiny_language as tiny

from tsi import samplers
from tsi.engine.adaptive import Rounds, run_rounds
from tsi.engine.engine import Engine
from tsi.engine.problem_loop import ProblemLoop
from tsi.engine.stopping import answer_error_below
from tsi.errors import ProblemError, Stopped
from tsi.experiments.command import exit_code, exit_resumably
from tsi.experiments.processes import process_group
from tsi.experiments.processes.distributed import join_processes
from tsi.experiments.worlds.embedded_world import device_mesh
from tsi.problem import Problem
from tsi.rewards.process_reward import ProcessReward
from tsi.rewards.text_reward import TextReward

PROBLEMS = [Problem(i, text, "") for i, text in enumerate(("hello", "bad", "f", "go"))]


def log_odds(texts):
    """A reward that is a function of the text."""
    return [0.1 * sum(map(ord, text)) % 3.0 - 1.0 for text in texts]


def log_odds_of_first(texts):
    """The same; only the first process may call it."""
    assert jax.process_index() == 0
    return log_odds(texts)


def fails_at_times(texts):
    """The same; it fails on some texts, and only the first process may call it."""
    assert jax.process_index() == 0
    if any(text.startswith("r") for text in texts):
        raise ValueError("no r")
    return log_odds(texts)


REWARDS = {
    "tokens": lambda: ProcessReward(),
    "text": lambda: kinds.reward_of("rlhflow", width=32),
    "function": lambda: TextReward(log_odds_of_first, tiny.decode),
    "failing": lambda: TextReward(fails_at_times, tiny.decode),
}
CASES = {
    "tokens": ("tokens", samplers.smc(), {}),
    "tree": ("tokens", samplers.mcts(), {}),
    "repeats": (
        "tokens",
        samplers.particle_gibbs(num_sweeps=2, ancestor_sampling=True),
        {"repetition_penalty": 1.3},
    ),
    "text": ("text", samplers.smc(), {}),
    "offloaded": ("text", samplers.smc(), {"offload_weights": True}),
    "function": ("function", samplers.smc(), {}),
    "failing": ("failing", samplers.smc(), {}),
    "rounds": ("tokens", samplers.smc(), {}),
}
"""Reward, sampler and further options of the engine."""


ROUNDS = Rounds(2, 4, answer_error_below(0.3, min_rounds=2))


def extract(text):
    """The answer of a text; only the first process may ask, and it fails at times."""
    assert jax.process_index() == 0
    if text.startswith("p"):
        raise ValueError("no p")
    return test_engine.extract(text)


def engine(reward="tokens", **options):
    policy, reward_model = tiny.models()
    if reward != "tokens":
        reward_model = kinds.model_of("rlhflow") if reward == "text" else None
    target = tiny.target(
        reward=REWARDS[reward](),
        max_step_tokens=kinds.STEP_TOKENS,
        max_tokens=kinds.MAX_TOKENS,
        max_steps=kinds.MAX_STEPS,
    )
    settings = {"encode": tiny.encode, "decode": tiny.decode, "max_rows": 16}
    return Engine(target, policy, reward_model, **settings, **options)


def outcome(name, mesh=None):
    """What a case gives: texts, ancestors and numbers of each problem, or errors."""
    reward, sampler, options = CASES[name]
    runner, key = engine(reward, mesh=mesh, **options), jax.random.key(3)
    failures = {}
    try:
        if name == "rounds":
            results = run_rounds(
                runner, sampler, key, PROBLEMS, ROUNDS, extract=extract
            )
        else:
            results = runner.run(sampler, key, PROBLEMS, 4, extract=extract)
    except ProblemError as error:
        results, failures = error.results, error.failures
    return {
        "failed": sorted(failures),
        "ids": [result.problem_id for result in results],
        "texts": [list(result.texts) for result in results],
        "ancestors": [result.steps.ancestors.tolist() for result in results],
        "log_weights": [np.asarray(x.log_weights).tolist() for x in results],
        "evidence": [float(result.log_evidence) for result in results],
        "tokens": [result.ledger.reward_tokens for result in results],
    }


def end_early(group, how):
    """The second process is stopped, killed, fails or decides otherwise.

    It does so in a burst, or as its caller uses a result ("outside").
    """
    count = 0

    def act(progress):
        nonlocal count
        count += 1
        if group.index == 0 or count != 6:
            return
        if how == "fails":
            raise OSError("the disk is full")
        if how == "differs":
            # Its population has another row of another length.
            ProblemLoop.fingerprint = lambda self: 7
        if how in ("outside", "differs"):
            return
        os.kill(os.getpid(), signal.SIGTERM if how == "stopped" else signal.SIGKILL)

    problems = [Problem(i, "hello", "") for i in range(40)]
    number = 0
    stream = engine("function", mesh=device_mesh(jax.device_count())).stream(
        samplers.smc(),
        jax.random.key(0),
        problems,
        8,
        extract=test_engine.extract,
        progress=act,
    )
    try:
        for _ in stream:
            number += 1
            if how == "outside" and group.index == 1 and number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)
    except Stopped:
        print(json.dumps(number), flush=True)
        raise


def main(address, index, count, cases=(), ends="", patience=100.0, late=0.0):
    process_group.EXIT_TIMEOUT = 3.0
    process_group.PARTNER_TIMEOUT = patience
    with exit_resumably(), join_processes(address, count, index) as group:
        group.hold_together(count)
        time.sleep(late if index == 1 else 0.0)
        mesh = device_mesh(jax.device_count())
        for name in cases:
            print(json.dumps(outcome(name, mesh)), flush=True)
        if ends:
            end_early(group, ends)
        group.gather("end")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(**json.loads(sys.argv[1]))))
