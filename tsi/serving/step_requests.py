"""The steps that a lane requests: drawn, or repeated after other prefixes.

Everything here runs in the client's thread and reads only immutable values, so the rows
of the lane may change in the meantime.
"""

import asyncio
import functools
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tsi.problem_ids import IdWords
from tsi.reasoning.limits import SolutionLimits
from tsi.serving.dialect import Drawing
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import Score, ScoredRow, Scorer, ServedScorer
from tsi.serving.served_rows import Row
from tsi.serving.step import ServedStep, StepRequest


class Extension(NamedTuple):
    """A row that has taken a step, not scored yet.

    Attributes:
        row: working row.
        after: the solution with the step, whose log-odds are still 0.
        log_prob: log p of the step.
        step: as the server drew it; None for a repeated step.
        repeated: number of tokens that the policy has read to repeat the step.
    """

    row: int
    after: Row
    log_prob: float
    step: ServedStep | None
    repeated: int = 0


Answer = tuple[list[Extension], list[Score] | None]
"""Rows that have taken a step, and their scores if a server computes them."""


class Repeat(NamedTuple):
    """A row that is to take the next step of another solution.

    Attributes:
        row: working row.
        old: the row's solution.
        source: the solution whose step it repeats.
    """

    row: int
    old: Row
    source: Row


class StepRequests:
    """Requests steps from the server of a policy.

    Args:
        policy: draws steps.
        scorer: the reward of steps; requested here if a server computes it.
        key: of the run.
        prompts: ids or code points of each problem's prompt.
        ids: of all problems.
        limits: of a solution.
        drawing: how steps are drawn.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        scorer: Scorer | ServedScorer,
        key: Any,
        prompts: Sequence[tuple[int, ...]],
        ids: IdWords,
        limits: SolutionLimits,
        drawing: Drawing,
    ) -> None:
        self.policy, self.scorer, self.prompts = policy, scorer, prompts
        self.limits, self.drawing = limits, drawing
        self._asks = hasattr(scorer, "ask")
        judge: Any = getattr(scorer, "judge", None)
        self._judged = judge is not None and judge.client is policy.client
        self._words = np.asarray(ids.words), np.asarray(ids.is_string)
        self._key = np.asarray(jax.random.key_data(key)).tobytes()[:64]

    def draw(
        self, problem: int, turn: int, rows: Sequence[tuple[int, int, Row]]
    ) -> Coroutine[Any, Any, Answer]:
        """New steps of rows of one problem.

        Args:
            problem: index of the problem.
            turn: number of the turn of the problem's sampler.
            rows: for each row, its number within the problem, the working row, and the
                solution so far.
        """
        prompt, limits = self.prompts[problem], self.limits
        # Rows that were forked from one row share its tokens, and then their prefix.
        prefixes = {id(old.tokens): old.tokens for _, _, old in rows}
        prefixes = {name: prompt + tokens for name, tokens in prefixes.items()}
        seeds = self._seeds_of(problem, turn, [number for number, _, _ in rows])
        requests = [
            StepRequest(
                prefixes[id(old.tokens)],
                min(limits.max_step_tokens, limits.max_tokens - old.newest.num_tokens),
                seed,
            )
            for (_, _, old), seed in zip(rows, seeds, strict=True)
        ]
        works = [
            functools.partial(
                self._draw_group,
                problem,
                [rows[index][1:] for index in group],
                [requests[index] for index in group],
            )
            for group in self.policy.groups(requests, judged=self._judged)
        ]
        return gather_answers(works)

    async def repeat(self, problem: int, repeats: Sequence[Repeat]) -> Answer:
        """Read the probabilities of repeated steps of rows of one problem."""
        prompt = self.prompts[problem]
        steps = [source.step(len(old.steps)) for _, old, source in repeats]
        pairs = [
            (prompt + old.tokens, step)
            for (_, old, _), step in zip(repeats, steps, strict=True)
        ]
        log_probs = await self.policy.log_probs(pairs)
        extensions = []
        for (row, old, source), step, log_prob in zip(
            repeats, steps, log_probs, strict=True
        ):
            depth = len(old.steps)
            before = source.steps[depth - 1].num_tokens if depth else 0
            count = source.steps[depth].num_tokens - before
            stopped = source.stopped and len(source.steps) == depth + 1
            after = self._extend(old, step, count, log_prob, stopped=stopped)
            extensions.append(Extension(row, after, log_prob, None, count))
        return await self._score(problem, extensions)

    async def _draw_group(
        self,
        problem: int,
        rows: Sequence[tuple[int, Row]],
        requests: Sequence[StepRequest],
    ) -> Answer:
        steps = await self.policy.draw(requests, self.drawing)
        extensions = [
            Extension(
                row,
                self._extend(
                    old,
                    step.tokens,
                    step.num_tokens,
                    step.log_prob,
                    stopped=step.end == "end",
                ),
                step.log_prob,
                step,
            )
            for (row, old), step in zip(rows, steps, strict=True)
        ]
        return await self._score(problem, extensions)

    async def _score(self, problem: int, extensions: list[Extension]) -> Answer:
        scorer: Any = self.scorer
        if not self._asks:
            return extensions, None
        rows = [scored_row(problem, extension.after) for extension in extensions]
        return extensions, list(await asyncio.gather(*map(scorer.ask, rows)))

    def _extend(
        self,
        old: Row,
        tokens: tuple[int, ...],
        num_tokens: int,
        log_prob: float,
        *,
        stopped: bool,
    ) -> Row:
        """A row with one more step, not scored yet."""
        at_limit = (
            old.newest.num_tokens + num_tokens >= self.limits.max_tokens
            or len(old.steps) + 1 >= self.limits.max_steps
        )
        return old.extend(
            tokens,
            num_tokens,
            log_prob,
            0.0,
            stopped=stopped,
            truncated=at_limit and not stopped,
        )

    def _seeds_of(self, problem: int, turn: int, numbers: Sequence[int]) -> list[int]:
        words, is_string = self._words
        text = f"{words[problem].tolist()}{bool(is_string[problem])}/{turn}/"
        common = hashlib.blake2b(text.encode(), key=self._key, digest_size=4)
        seeds = []
        for number in numbers:
            own_hash = common.copy()
            own_hash.update(str(number).encode())
            seeds.append(int.from_bytes(own_hash.digest(), "big") >> 1)
        return seeds


async def gather_answers(
    works: Sequence[Callable[[], Coroutine[Any, Any, Answer]]],
) -> Answer:
    """The rows of several requests; at the first error the others are given up."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        answers = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        raise
    extensions = [extension for group, _ in answers for extension in group]
    if any(scores is None for _, scores in answers):
        return extensions, None
    return extensions, [score for _, scores in answers for score in scores or []]


def scored_row(problem: int, row: Row) -> ScoredRow:
    """A row in the form that scorers take."""
    return ScoredRow(
        problem,
        row.tokens,
        tuple([after.length for after in row.steps]),
        row.stopped,
        row.finished,
        row.newest.log_prob,
    )
