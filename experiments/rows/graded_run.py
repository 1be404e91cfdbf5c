"""A kept run whose answers are extracted and graded again."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from tsi.experiments.grading.grade import Grade
from tsi.experiments.plans.methods import get_method
from tsi.experiments.plans.pool_subsets import subset_correctness
from tsi.experiments.plans.shared_rollouts import first_log_weights
from tsi.experiments.rows.kept_particles import KeptRun
from tsi.experiments.rows.row_format import Line, canonical_json
from tsi.experiments.rows.rows import Pair, graded_fields
from tsi.problem import Problem
from tsi.results.estimand import Estimand, estimand_of
from tsi.results.selection import answer_posterior, select, unanswered_weight
from tsi.weights import weight_dtype


class Grading(NamedTuple):
    """How texts become graded answers.

    Attributes:
        extract: the answer of a text, canonical or as written, or None.
        grade: the grade of each answer to a problem.
        settings: what rows are to record from now on; None removes a setting.
        check: refuses problems by whose right answers nothing can be graded.
    """

    extract: Callable[[str], str | None]
    grade: Callable[[Sequence[Pair]], Sequence[Grade]]
    settings: Mapping[str, Any] = MappingProxyType({})
    check: Callable[[Sequence[Problem]], None] = lambda problems: None


class GradedRun:
    """The answers of a kept run, extracted and graded once.

    Args:
        run: with the texts.
        grading: extracts and grades.
    """

    def __init__(self, run: KeptRun, grading: Grading) -> None:
        self._run = run
        texts = zip(run.particles.texts, run.complete, strict=True)
        self._answers = [grading.extract(text) if ok else None for text, ok in texts]
        given_answers = list(dict.fromkeys(x for x in self._answers if x is not None))
        grades = grading.grade([(run.problem, answer) for answer in given_answers])
        self._grades = dict(zip(given_answers, grades, strict=True))

    def fields(self, line: Line) -> dict[str, Any]:
        """The graded fields of a row that is derived from this run."""
        cell, run, answers = line.cell, self._run, self._answers
        expected = None
        method = get_method(cell.method)
        settings = canonical_json(line.settings.get("sampler", {}))
        estimand = _estimand(cell.method, settings)
        if not (method.never_resamples or method.is_deterministic):
            if answers == run.particles.answers:
                # As the engine computed it, before weights were rounded.
                posterior = answer_posterior(answers, run.particles.log_weights)
                if run.selected is not None:
                    posterior[run.selected] = run.probability
                return graded_fields(
                    answers, run.selected, posterior, run.unanswered, self._grades
                )
            log_weights = run.particles.log_weights
        else:
            expected = self._mean_correct(estimand, cell.budget)
            answers = answers[: cell.budget]
            log_weights, _ = first_log_weights(
                run.particles,
                run.log_evidence,
                cell.budget,
                reads_reward=estimand.reads_reward,
            )
        rewards = run.particles.rewards[: len(answers)]
        selected = select(estimand.select, answers, log_weights, rewards)
        return graded_fields(
            answers,
            selected,
            answer_posterior(answers, log_weights),
            unanswered_weight(answers, np.asarray(log_weights, weight_dtype())),
            self._grades,
            expected,
        )

    def _mean_correct(self, estimand: Estimand, budget: int) -> float:
        """Expected correctness over all subsets of that size of the pool."""
        run = self._run
        (mean,), _ = subset_correctness(
            run.particles._replace(answers=self._answers),
            run.log_evidence,
            estimand,
            {answer: grade.correct for answer, grade in self._grades.items()},
            [budget],
        )
        return float(mean)


@functools.cache
def _estimand(name: str, settings: str) -> Estimand:
    """The estimand of a method with the settings that a row records."""
    method = get_method(name)
    sampler = method.constructor(**json.loads(settings))
    return estimand_of(sampler, reads_reward=method.reads_reward)
