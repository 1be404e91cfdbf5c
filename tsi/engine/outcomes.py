"""From what a problem's rows have become to its :class:`tsi.results.result.Result`."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tsi.accuracy.degeneracy import common_past
from tsi.accuracy.diagnostics import diagnose_run, diagnose_store, rewards_of
from tsi.engine.lane import Ended
from tsi.engine.methods import own_fields
from tsi.engine.outcome import distinct, slot_costs, texts_by_step, weighed_answers
from tsi.explorer import Explorer, ExplorerInfo
from tsi.models.tokens.thinking import is_thinking
from tsi.problem import Problem
from tsi.reasoning.particles import Particles, ReasoningParams
from tsi.reasoning.target import ReasoningTarget
from tsi.results.answers import answer_posterior, select
from tsi.results.result import Result, ledger_of_first
from tsi.sampler import Sampler


class Solutions(NamedTuple):
    """Texts of one problem's rows, and the answers that they end in."""

    step_texts: list[list[str]]
    texts: list[str]
    answers: list[str | None]


class Outcomes(NamedTuple):
    """What makes results of one run.

    Attributes:
        sampler: what has decided.
        target: what was explored.
        params: weights, for their FLOPs.
        num_particles: N.
        encode: a prompt to token ids.
        decode: token ids to text.
        extract: canonical answer of a solution's text, or None.
    """

    sampler: Sampler | Explorer
    target: ReasoningTarget
    params: ReasoningParams
    num_particles: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    extract: Callable[[str], str | None]

    def read(self, particles: Particles) -> Solutions:
        """Texts and answers of rows; this calls the user's own functions."""
        step_texts = texts_by_step(self.decode, particles)
        texts = ["".join(parts) for parts in step_texts]
        whole = particles.finished & ~particles.truncated
        answers = [
            self.extract(text) if ended else None
            for text, ended in zip(texts, whole, strict=True)
        ]
        return Solutions(step_texts, texts, answers)

    def result(
        self,
        problem: Problem,
        ended: Ended,
        solutions: Solutions,
        seconds: float,
        lengths: tuple[int, int],
    ) -> Result:
        """The result of one problem.

        Args:
            problem: which.
            ended: what came of it.
            solutions: of its rows.
            seconds: of wall-clock time.
            lengths: tokens of its prompt, as the policy and as the reward reads it.
        """
        _, mine, state, infos, cost = ended
        truncated, log_odds = np.asarray(mine.truncated), np.asarray(mine.log_odds)
        step_texts, texts, answers = solutions
        explores = isinstance(self.sampler, Explorer)
        log_weights = np.asarray(state.log_weights)
        num_truncated = int(truncated.sum())
        if explores:
            answers = weighed_answers(answers, log_weights)
            num_truncated = distinct(state.members, truncated)
        rewards = rewards_of(log_odds)
        no_target = self.sampler.path_log_weight is None
        slots = slot_costs(cost, *lengths, self.target, self.params)
        ledger = ledger_of_first(slots, len(slots.flops), seconds)
        return Result(
            problem_id=problem.id,
            texts=texts,
            answers=answers,
            rewards=rewards,
            log_weights=log_weights,
            log_evidence=(math.nan if no_target else float(state.log_evidence)),
            ess=infos.ess,
            ancestors=common_past(step_texts) if explores else infos.ancestors,
            step_texts=step_texts,
            num_recoveries=int(infos.num_recoveries.sum()),
            num_invalid=int(infos.num_invalid.sum()),
            num_truncated=num_truncated,
            answer_posterior=answer_posterior(answers, log_weights),
            selected=select(self.sampler.select, answers, log_weights, rewards),
            ledger=ledger._replace(rollouts=self.num_particles),
            slots=slots,
            truncated=truncated,
            thinking=self._thinking(problem, truncated, texts),
            log_corrections=(
                None
                if self.target.forced_end is None
                else np.asarray(mine.log_prob - mine.log_proposal)
            ),
            infos=own_fields(infos, ExplorerInfo._fields) if explores else infos.own,
            **(
                diagnose_store(self.sampler, answers, state, step_texts)
                if isinstance(self.sampler, Explorer)
                else diagnose_run(self.sampler, state, infos, answers)
            ),
        )

    def _thinking(
        self, problem: Problem, truncated: np.ndarray, texts: list[str]
    ) -> np.ndarray:
        """Which particles were cut at a limit before their thinking ended."""
        thinking = np.zeros(len(texts), bool)
        if truncated.any():
            prompt = self.decode(self.encode(problem.prompt))
            for row in np.flatnonzero(truncated):
                thinking[row] = is_thinking(texts[row], prompt)
        return thinking
