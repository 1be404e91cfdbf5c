"""From the results of a batch to the rows of a results file."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tsi.experiments.scaling.methods import get_method, sampler_of
from tsi.experiments.scaling.plan import Batch
from tsi.experiments.scaling.results import Cell
from tsi.experiments.scaling.shared_rollouts import first_rollouts
from tsi.experiments.worlds.world import World
from tsi.problem import Problem
from tsi.results.estimand import estimand_of
from tsi.results.notes import reward_spread
from tsi.results.result import Result


def rows_of(
    batch: Batch, world: World, batch_results: Sequence[Result]
) -> list[tuple[Cell, dict[str, Any]]]:
    """The rows of a batch's results, in the order of its cells."""
    results = {result.problem_id: result for result in batch_results}
    rows = []
    for name, budget in batch.outcomes:
        method = get_method(name)
        sampler = sampler_of(name, world.max_steps)
        estimand = estimand_of(sampler, reads_reward=method.reads_reward)
        for problem in batch.problems:
            result = results.get(problem.id)
            if result is None:
                continue
            if method.independent or method.deterministic:
                result = first_rollouts(result, budget, estimand)
            cell = Cell(name, budget, batch.seed, problem.id)
            rows.append((cell, outcome(world, problem, result)))
    return rows


def outcome(world: World, problem: Problem, result: Result) -> dict[str, Any]:
    """The fields of a row besides its cell and settings."""
    given_answers = [answer for answer in result.answers if answer is not None]
    answers = {*given_answers, result.selected} - {None}
    is_right = {answer: world.is_correct(problem, answer) for answer in answers}
    ledger, steps, diagnostics = result.ledger, result.steps, result.diagnostics
    return {
        "prompt": problem.prompt,
        "answer": problem.answer,
        "selected": result.selected,
        "correct": is_right.get(result.selected, False),
        "probability": round_finite(
            result.answer_posterior.get(result.selected or "", 0)
        ),
        "unanswered": round_finite(result.unanswered),
        "num_answered": len(given_answers),
        "num_right": sum(is_right[answer] for answer in given_answers),
        "mean_reward": round_finite(np.mean(result.rewards)),
        "reward_spread": round_finite(reward_spread(result)),
        "log_evidence": round_finite(result.log_evidence),
        "log_evidence_variance": round_finite(result.evidence.variance),
        "pareto_k": round_finite(diagnostics.pareto_k),
        "unique_eves": int(steps.unique_ancestors[0]),
        "min_ess": round_finite(steps.ess.min()),
        "num_distinct": result.particles.num_distinct,
        "acceptance_rate": round_finite(diagnostics.acceptance_rate),
        "num_steps": len(steps.ancestors),
        "rollouts": ledger.rollouts,
        "num_recoveries": diagnostics.num_recoveries,
        "num_invalid": diagnostics.num_invalid,
        "num_truncated": diagnostics.num_truncated,
        "num_thinking": result.particles.num_thinking,
        "generated_tokens": ledger.generated_tokens,
        "reward_tokens": ledger.reward_tokens,
        "flops": ledger.flops,
        "seconds": round_finite(ledger.seconds),
    }


def round_finite(value: Any) -> float | None:
    """Round to six digits; None, null in JSON, if the value is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
