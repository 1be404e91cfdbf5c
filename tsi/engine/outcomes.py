"""From the final rows of a problem to its :class:`tsi.results.result.Result`."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from tsi.accuracy.degeneracy import common_past
from tsi.accuracy.diagnostics import (
    Diagnosis,
    diagnose,
    eves,
    prefix_families,
    rewards_of,
)
from tsi.engine.ended_problems import EndedProblem
from tsi.engine.methods import own_fields
from tsi.engine.outcome import count_members, drop_weightless, texts_by_step
from tsi.explorer import Explorer, ExplorerInfo
from tsi.models.tokens.thinking import is_thinking
from tsi.problem import Problem
from tsi.reasoning.particles import Particles
from tsi.results.build import build_result
from tsi.results.estimand import Estimand, estimand_of
from tsi.results.ledger import SlotCosts, ledger_of_first
from tsi.results.parts import FinalParticles, Steps
from tsi.results.result import Result
from tsi.sampler import Sampler


class Solutions(NamedTuple):
    """Texts of one problem's rows, and the answers extracted from them."""

    step_texts: list[list[str]]
    texts: list[str]
    answers: list[str | None]


def check_answers(answers: list[Any]) -> list[str | None]:
    """The answers that `extract` has returned.

    Raises:
        TypeError: one is neither a string nor None.
    """
    for answer in answers:
        if not (answer is None or isinstance(answer, str)):
            raise TypeError(
                "extract must return the answer as a string, or None; it returned "
                f"{type(answer).__name__}."
            )
    return answers


class Outcomes(NamedTuple):
    """Makes the results of one run.

    Attributes:
        sampler: the one that ran.
        num_particles: N.
        encode: a prompt to token ids.
        decode: token ids to text.
        extract: canonical answer of a solution's text, or None.
        costs: function of `(cost, prompt tokens of the policy, prompt tokens of the
            reward)` that returns the costs by slot.
        corrects: whether the proposal is not the policy, so that solutions have
            log p - log q.
    """

    sampler: Sampler | Explorer
    num_particles: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    extract: Callable[[str], str | None]
    costs: Callable[[Any, int, int], SlotCosts]
    corrects: bool = False

    def read(
        self,
        particles: Particles,
        share: Callable[[Callable[[], list[str | None]]], list[str | None]],
    ) -> Solutions:
        """Texts and answers of rows, by `decode` and `extract` of the user.

        Args:
            particles: the rows.
            share: calls the function that extracts answers, in one of the processes
                that hold the model (:func:`tsi.engine.agreement.answers_of_first`).
        """
        step_texts = texts_by_step(self.decode, particles)
        texts = ["".join(parts) for parts in step_texts]
        whole = particles.finished & ~particles.truncated

        def extract_all() -> list[Any]:
            return [
                self.extract(text) if is_whole else None
                for text, is_whole in zip(texts, whole, strict=True)
            ]

        return Solutions(step_texts, texts, share(lambda: check_answers(extract_all())))

    def result(
        self,
        problem: Problem,
        ended_problem: EndedProblem,
        solutions: Solutions,
        seconds: float,
        lengths: tuple[int, int],
    ) -> Result:
        """The result of one problem.

        Args:
            problem: the one that ended.
            ended_problem: its final rows, state, infos and costs.
            solutions: texts and answers of the rows.
            seconds: wall-clock time.
            lengths: tokens of its prompt, as the policy and as the reward reads it.
        """
        _, rows, state, infos, cost = ended_problem
        truncated = np.asarray(rows.truncated)
        step_texts, texts, answers = solutions
        estimand = estimand_of(self.sampler)
        log_weights = np.asarray(state.log_weights)
        num_truncated, acceptance_rate = int(truncated.sum()), math.nan
        if isinstance(self.sampler, Explorer):
            answers = drop_weightless(answers, log_weights)
            num_truncated = count_members(state.members, truncated)
            acceptance_rate = accepted_share(self.sampler, state)
            steps = Steps(
                infos.ess,
                common_past(step_texts),
                infos=own_fields(infos, ExplorerInfo._fields),
            )
            diagnosis = diagnose_store(estimand, state, steps.ancestors, answers)
        else:
            steps = Steps(
                infos.ess,
                infos.ancestors,
                infos.resampled,
                rewards_of(infos.log_potentials),
                infos.own,
            )
            diagnosis = diagnose_run(estimand, state, infos, answers)
        slots = self.costs(cost, *lengths)
        ledger = ledger_of_first(slots, len(slots.flops), seconds)
        return build_result(
            problem.id,
            estimand,
            FinalParticles(
                texts=texts,
                answers=answers,
                rewards=rewards_of(np.asarray(rows.log_odds)),
                log_weights=log_weights,
                step_texts=step_texts,
                truncated=truncated,
                thinking=self._thinking(problem, truncated, texts),
                log_corrections=(
                    np.asarray(rows.log_prob - rows.log_proposal)
                    if self.corrects
                    else None
                ),
            ),
            steps,
            diagnosis,
            log_evidence=float(state.log_evidence),
            num_recoveries=int(infos.num_recoveries.sum()),
            num_invalid=int(infos.num_invalid.sum()),
            num_truncated=num_truncated,
            acceptance_rate=acceptance_rate,
            ledger=ledger._replace(rollouts=self.num_particles),
            slots=slots,
        )

    def _thinking(
        self, problem: Problem, truncated: np.ndarray, texts: list[str]
    ) -> np.ndarray:
        """Which particles were truncated before their thinking ended."""
        thinking = np.zeros(len(texts), bool)
        if truncated.any():
            prompt = self.decode(self.encode(problem.prompt))
            for row in np.flatnonzero(truncated):
                thinking[row] = is_thinking(texts[row], prompt)
        return thinking


def diagnose_run(
    estimand: Estimand, state: Any, infos: Any, answers: Sequence[str | None]
) -> Diagnosis:
    """Error estimates of a sampler's run, from its genealogy.

    Args:
        estimand: what the sampler claims.
        state: its last state.
        infos: `ancestors` and `resampled` of the steps taken, stacked, in numpy.
        answers: canonical answers of the final particles.
    """
    islands = np.size(getattr(state, "resampled", False))
    return diagnose(
        answers,
        np.asarray(state.log_weights),
        float(state.log_evidence),
        eves(infos.ancestors),
        int(np.sum(infos.resampled)),
        has_evidence=islands == 1,
        has_errors=estimand.is_weighted_sample,
    )


def diagnose_store(
    estimand: Estimand,
    state: Any,
    past: Int[np.ndarray, "T K"],
    answers: Sequence[str | None],
) -> Diagnosis:
    """Error estimates of an explorer's members; their common past is their common text.

    Args:
        estimand: what the explorer claims.
        state: its last state.
        past: see `tsi.accuracy.degeneracy.common_past`.
        answers: canonical answers of the members.
    """
    return diagnose(
        answers,
        np.asarray(state.log_weights),
        float(state.log_evidence),
        prefix_families(past),
        0,
        has_evidence=False,
        has_errors=estimand.is_weighted_sample,
    )


def accepted_share(explorer: Explorer, state: Any) -> float:
    """Fraction of a chain's moves that were accepted; NaN without moves or a chain."""
    if explorer.acceptance is None:
        return math.nan
    with np.errstate(invalid="ignore"):  # 0 of 0 moves is NaN, as it should be
        return float(explorer.acceptance(state))
