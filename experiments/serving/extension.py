"""The extension field ``tsi`` of a response: the results of the run besides the text.

Numbers that do not exist for a method, or cannot be estimated, are null.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from tsi.accuracy.diagnostics import probabilities_of
from tsi.experiments.solving.solve import thinking_text
from tsi.results.result import Result


class Run(NamedTuple):
    """How a result was computed.

    Attributes:
        method, budget: the sampler and its N.
        seed: of the random numbers.
        temperature: of the policy.
        batch: number of requests that were computed together.
    """

    method: str
    budget: int
    seed: int
    temperature: float
    batch: int


def describe_run(
    result: Result, run: Run, particle: int, *, genealogy: bool
) -> dict[str, Any]:
    """The extension field.

    Args:
        result: of one problem.
        run: how it was computed.
        particle: whose text is the response.
        genealogy: whether to include all particles and their ancestors.
    """
    estimand, diagnostics = result.estimand, result.diagnostics
    errors, cost = result.posterior.errors, result.ledger
    weights = probabilities_of(result.log_weights)
    fields: dict[str, Any] = {
        **run._asdict(),
        "problem_id": result.problem_id,
        "answer": result.selected,
        "particle": particle,
        "weight": _finite_or_none(weights[particle]),
        "reward": _finite_or_none(result.rewards[particle]),
        "answer_posterior": [
            {
                "answer": answer,
                "probability": _finite_or_none(probability),
                "error": _finite_or_none(errors.get(answer, math.nan)),
            }
            for answer, probability in result.answer_posterior.items()
        ],
        "no_answer": _finite_or_none(result.unanswered),
        "log_evidence": _finite_or_none(result.log_evidence),
        "log_evidence_error": _finite_or_none(result.evidence.standard_error),
        "estimand": {
            "posterior": _meaning(result),
            "evidence": estimand.evidence,
            "has_target": estimand.has_target,
            "power": _finite_or_none(estimand.power),
            "selection_rule": estimand.select,
        },
        "diagnostics": {
            "ess": _finite_or_none(1 / np.sum(weights**2))
            if _has_ess(result)
            else None,
            "pareto_k": _finite_or_none(diagnostics.pareto_k),
            "acceptance_rate": _finite_or_none(diagnostics.acceptance_rate),
            "num_distinct": result.particles.num_distinct,
            "num_truncated": diagnostics.num_truncated,
            "num_recoveries": diagnostics.num_recoveries,
            "num_invalid": diagnostics.num_invalid,
        },
        "cost": {
            "rollouts": cost.rollouts,
            "generated_tokens": cost.generated_tokens,
            "reward_tokens": cost.reward_tokens,
            "flops": _finite_or_none(cost.flops),
            "seconds": _finite_or_none(cost.seconds),
        },
        "warnings": _warnings(result),
    }
    if genealogy:
        fields["genealogy"] = describe_genealogy(result)
    return fields


def describe_genealogy(result: Result) -> dict[str, Any]:
    """All particles, and the ancestors of each by step.

    ``ancestors[t][n]`` is the parent, at step t - 1, of particle n at step t. The steps
    of a particle are the texts that it has kept; those of dead branches are gone.
    """
    particles, steps = result.particles, result.steps
    texts = particles.step_texts or [[text] for text in particles.texts]
    weights, resampled = probabilities_of(result.log_weights), steps.resampled
    return {
        "particles": [
            {
                "steps": texts[n],
                "answer": particles.answers[n],
                "reward": _finite_or_none(particles.rewards[n]),
                "weight": _finite_or_none(weights[n]),
                "truncated": None
                if particles.truncated is None
                else bool(particles.truncated[n]),
            }
            for n in range(len(texts))
        ],
        "ancestors": steps.ancestors.tolist(),
        "rewards": None if steps.rewards is None else _rows(steps.rewards),
        "ess": [_finite_or_none(size) for size in steps.ess],
        "resampled": None if resampled is None else resampled.tolist(),
    }


def _meaning(result: Result) -> str:
    """A description of what the probabilities of the answers estimate."""
    estimand = result.estimand
    if not estimand.has_target:
        return "shares of the weight by the method's ranks; the method has no target"
    power = "" if estimand.power == 1.0 else f"^{estimand.power:g}"
    sample = "states of a chain" if estimand.chain else "weighted particles"
    return (
        f"estimates from {sample} of the probability of each answer under p(path)"
        f"{power} exp(path log weight), among paths with an answer"
    )


def _warnings(result: Result) -> list[str]:
    thinking = result.particles.num_thinking
    more = [thinking_text(thinking, len(result.texts))] if thinking else []
    return [*result.notes, *more]


def _has_ess(result: Result) -> bool:
    return not np.isnan(result.steps.ess).all()


def _rows(numbers: Any) -> list[list[float | None]]:
    return [[_finite_or_none(number) for number in row] for row in np.asarray(numbers)]


def _finite_or_none(number: Any) -> float | None:
    """A number for JSON, which has neither NaN nor infinity."""
    return float(number) if math.isfinite(number) else None
