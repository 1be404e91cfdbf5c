"""From the results of a batch to the rows of a results file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsi.experiments.grading.grade import Grade
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import get_method, sampler_of
from tsi.experiments.plans.plan import Batch
from tsi.experiments.plans.pool_subsets import subset_correctness
from tsi.experiments.plans.shared_rollouts import first_rollouts
from tsi.experiments.worlds.world import World
from tsi.problem import Problem
from tsi.results.estimand import estimand_of
from tsi.results.ledger import Ledger
from tsi.results.notes import reward_spread
from tsi.results.result import Result

Pair = tuple[Problem, str | None]
"""A problem and an answer to it, which is to be graded."""


def rows_of(
    batch: Batch, world: World, batch_results: Sequence[Result]
) -> list[tuple[Cell, dict[str, Any]]]:
    """The rows of a batch's results, in the order of its cells."""
    results = {result.problem_id: result for result in batch_results}
    problems = [problem for problem in batch.problems if problem.id in results]
    pairs = [
        (problem, answer)
        for problem in problems
        for answer in answers_of(results[problem.id])
    ]
    all_grades = dict(zip(map(_key, pairs), world.grade(pairs), strict=True))
    rows = []
    sizes: dict[str, list[int]] = {}
    for name, budget in batch.outcomes:
        sizes.setdefault(name, []).append(budget)
    expected: dict[tuple[str, int | str], dict[int, float]] = {}
    for name, budget in batch.outcomes:
        method = get_method(name)
        sampler = sampler_of(name, world.max_steps)
        estimand = estimand_of(sampler, reads_reward=method.reads_reward)
        for problem in problems:
            result = results[problem.id]
            grades = {
                answer: all_grades[_key((problem, answer))]
                for answer in answers_of(result)
            }
            if method.never_resamples and (name, problem.id) not in expected:
                means, _ = subset_correctness(
                    result.particles,
                    result.log_evidence,
                    estimand,
                    {answer: grade.correct for answer, grade in grades.items()},
                    sizes[name],
                )
                of_size = dict(zip(sizes[name], map(float, means), strict=True))
                expected[name, problem.id] = of_size
            if method.never_resamples or method.is_deterministic:
                result = first_rollouts(result, budget, estimand)
            cell = Cell(name, budget, batch.seed, problem.id)
            mean = expected.get((name, problem.id), {}).get(budget)
            rows.append((cell, outcome(problem, result, grades, mean)))
    return rows


def answers_of(result: Result) -> list[str]:
    """The different answers of a result, that are graded once each."""
    answers = (*result.answers, result.selected)
    return list(dict.fromkeys(answer for answer in answers if answer is not None))


def _key(pair: Pair) -> tuple[int | str, str | None]:
    return pair[0].id, pair[1]


def graded_fields(
    answers: Sequence[str | None],
    selected: str | None,
    posterior: Mapping[str, float],
    unanswered: float,
    grades: Mapping[str, Grade],
    expected: float | None = None,
) -> dict[str, Any]:
    """The fields of a row that depend on the answers and on their grades.

    Args:
        answers: of all particles.
        selected: one of them, or None.
        posterior: probability of each answer.
        unanswered: share of the weight without an answer.
        grades: of all these answers.
        expected: correctness over all subsets of a pool; None for a run without one.
    """
    given_answers = [answer for answer in answers if answer is not None]
    right = [name for name in posterior if name in grades and grades[name].correct]
    correct = selected is not None and grades[selected].correct
    return {
        "selected": selected,
        "correct": correct,
        "expected_correct": round_finite(correct if expected is None else expected),
        "probability": round_finite(posterior.get(selected or "", 0.0)),
        "right_probability": round_finite(math.fsum(posterior[a] for a in right)),
        "unanswered": round_finite(unanswered),
        "num_answered": len(given_answers),
        "num_right": sum(grades[answer].correct for answer in given_answers),
        "num_ungraded": sum(
            grades[answer].failure is not None for answer in given_answers
        ),
    }


def outcome(
    problem: Problem,
    result: Result,
    grades: Mapping[str, Grade],
    expected: float | None = None,
) -> dict[str, Any]:
    """The fields of a row without its cell and settings.

    Args:
        problem: with its right answer.
        result: of the row's method at its budget.
        grades: of its answers.
        expected: see `graded_fields`.
    """
    ledger, steps, diagnostics = result.ledger, result.steps, result.diagnostics
    return {
        "prompt": problem.prompt,
        "answer": problem.answer,
        **graded_fields(
            result.answers,
            result.selected,
            result.answer_posterior,
            result.unanswered,
            grades,
            expected,
        ),
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
        # Those of a served policy of unknown size are not known.
        "flops": ledger.flops if math.isfinite(ledger.flops) else None,
        "seconds": round_finite(ledger.seconds),
        **served_counts(ledger),
    }


def served_counts(ledger: Ledger) -> dict[str, int]:
    """What a server was sent, found in its cache and reads anew; nothing without one.

    A server that takes only text does not say how many tokens it was sent.
    """
    counts: dict[str, int] = {}
    if ledger.sent_tokens:
        counts["sent_tokens"] = ledger.sent_tokens
        counts["cached_tokens"] = ledger.cached_tokens
    if ledger.retokenized_steps:
        counts["retokenized_steps"] = ledger.retokenized_steps
    return counts


def round_finite(value: Any) -> float | None:
    """Round to six digits; None, null in JSON, if the value is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
