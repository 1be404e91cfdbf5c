"""A world without models: outcomes are a function of (seed, problem, particle)."""

import sys
import time
import zlib
from pathlib import Path

import jax
import numpy as np

from tsi.accuracy.diagnostics import Diagnosis
from tsi.errors import ConfigurationError, ProblemError, Stopped
from tsi.experiments.grading.grade import Grade
from tsi.experiments.plans.methods import METHODS, sampler_of
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.scaling.scale import run_plan
from tsi.experiments.worlds.world import World
from tsi.explorer import Explorer
from tsi.problem import Problem
from tsi.results.build import build_result
from tsi.results.estimand import estimand_of
from tsi.results.ledger import SlotCosts, ledger_of_first
from tsi.results.parts import FinalParticles, Steps

MAX_STEPS = 5
SETTINGS = {"task": "fake", "temperature": 1.0}


def number_of(id):
    return id if isinstance(id, int) else zlib.crc32(id.encode())


def read_answer(text):
    """The answer of a text, which is the text, unless it was cut."""
    return None if text == "None" else text


class FakeEngine:
    """Draws answers and rewards; methods other than independent ones get better."""

    mesh = None

    def __init__(self, sleep=0.0, rows=40):
        self.calls = []
        self.sleep, self.rows = sleep, rows

    def check_fits(self, sampler, num_particles):
        if num_particles > 4096:
            raise ConfigurationError("This does not fit.")

    def problems_at_once(self, sampler, num_particles):
        if isinstance(sampler, Explorer):
            plan = sampler.plan(num_particles, MAX_STEPS)
            return max(1, min(self.rows // plan.rows, 16 * self.rows // plan.stored))
        return max(1, self.rows // num_particles)

    def run(
        self,
        sampler,
        key,
        problems,
        num_particles,
        *,
        extract,
        temperature=None,
        proposal_temperature=None,
        progress=None,
    ):
        time.sleep(self.sleep)
        seed = int(jax.random.key_data(key)[-1])
        name = next(n for n in METHODS if sampler_of(n, MAX_STEPS) is sampler)
        self.calls.append((name, seed, num_particles, [p.id for p in problems]))
        return [
            self.result(sampler, name, seed, p, num_particles, temperature)
            for p in problems
        ]

    def stream(self, sampler, key, problems, num_particles, **settings):
        """Some problems end at a time."""
        size, failure = self.problems_at_once(sampler, num_particles), None
        for start in range(0, len(problems), size):
            some = problems[start : start + size]
            try:
                yield from self.run(sampler, key, some, num_particles, **settings)
            except Stopped as error:
                yield from error.results
                raise
            except ProblemError as error:
                yield from error.results
                failure = error if failure is None else failure.join(error)
        if failure is not None:
            raise failure

    def result(self, sampler, name, seed, problem, num_particles, temperature):
        draws = np.array(
            [
                np.random.default_rng((seed, number_of(problem.id), n)).random(4)
                for n in range(num_particles)
            ]
        )
        if temperature == 0.0:
            draws[:] = 0.5
        difficulty = np.random.default_rng((99, number_of(problem.id))).random()
        skill = 0.0 if METHODS[name].never_resamples else 0.1 * np.log2(num_particles)
        right = draws[:, 0] < 0.1 + 0.5 * (1 - difficulty) + skill
        answers = [
            problem.answer if good else str(int(10 * u)) if u > 0.1 else None
            for good, u in zip(right, draws[:, 1], strict=True)
        ]
        rewards = np.clip(0.3 * draws[:, 2] + 0.4 * right, 0.01, 0.99)
        truncated = np.array([answer is None for answer in answers])
        raw = np.where(truncated, -np.inf, np.log(rewards))
        top = raw.max()
        log_evidence = float(
            top + np.log(np.exp(raw - top).mean()) if np.isfinite(top) else -np.inf
        )
        finite = np.isfinite(log_evidence)
        log_weights = raw - log_evidence if finite else np.zeros(num_particles)
        tokens = (5 + 20 * draws[:, 3]).astype(int)
        slots = SlotCosts(tokens, tokens, tokens * 1e3, tokens * 1e3, 6, 6e3, 6e3)
        particles = FinalParticles(
            texts=[str(answer) for answer in answers],
            answers=answers,
            rewards=rewards,
            log_weights=log_weights,
            step_texts=[["a\n", "b\n", str(answer)] for answer in answers],
            truncated=truncated,
        )
        steps = Steps(
            np.full(3, num_particles, np.float32),
            np.tile(np.arange(num_particles), (3, 1)),
        )
        return build_result(
            problem.id,
            estimand_of(sampler),
            particles,
            steps,
            Diagnosis(np.nan, {}, np.nan),
            log_evidence=log_evidence,
            num_recoveries=0,
            num_invalid=0,
            num_truncated=int(truncated.sum()),
            ledger=ledger_of_first(slots, num_particles, time.perf_counter()),
            slots=slots,
        )


def vary(result, **parts):
    """The result with other fields of its parts: ``steps={"ess": ...}``."""
    return result._replace(
        **{
            name: getattr(result, name)._replace(**fields)
            for name, fields in parts.items()
        }
    )


def fake_world(num_problems=20, sleep=0.0, settings=None, rows=40):
    """A world of problems "0+1=", "1+1=", ... whose answer is the sum plus 100."""
    problems = [Problem(i, f"{i}+1=", str(101 + i)) for i in range(num_problems)]
    return World(
        FakeEngine(sleep, rows),
        problems,
        read_answer,
        lambda pairs: [Grade(answer == problem.answer) for problem, answer in pairs],
        MAX_STEPS,
        settings or SETTINGS,
    )


if __name__ == "__main__":
    plan = make_plan(["all"], [1, 2, 4], 2)
    world = fake_world(sleep=float(sys.argv[2]), rows=24)
    run_plan(plan, world, Path(sys.argv[1]), progress=False)
