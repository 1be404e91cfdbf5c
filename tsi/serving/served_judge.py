r"""A served policy as a judge of solutions, by the probabilities of one token.

The policy reads prompt, solution and a question. The log-odds are log p(yes) - log
p(no) of the next token (arXiv 2410.02725), as :class:`tsi.rewards.self_judge.SelfJudge`
computes them on this machine. Prefixes are sent as token ids, so that a server with the
prompt and the solution in its cache reads only the question.
"""

import asyncio
from collections.abc import Callable, Sequence

from tsi.errors import CapabilityError
from tsi.rewards.aggregation import check_aggregation
from tsi.rewards.self_judge import SelfJudge
from tsi.serving.policy import ServedPolicy
from tsi.serving.scorer import Score, ScoredRow
from tsi.serving.step_scores import StepScores, aggregate_scores, prefix_after


class ServedJudge:
    """A :class:`tsi.serving.scorer.ServedScorer`; see the module docstring.

    Attributes:
        num_bounded: number of scores so far for which the server did not list one of
            the answers, because it was too unlikely. The least likely listed token is
            used instead, so these log-odds are too close to 0.

    Args:
        judge: the policy that judges.
        question: ids of the question and of the two answers.
        encode: function from a problem's prompt to ids of the judge.
        translate: function from a row to ids of the solution, for a judge with another
            tokenizer; it may wait for a server. None if the judge reads the row's own
            ids.
        aggregation: how step scores are aggregated.
        name: for rows of results.
        address: URL of a server of the judge's own, for rows of results; None if the
            judge is the policy.

    Raises:
        CapabilityError: the server takes only text.
        UnknownNameError: there is no such aggregation.
    """

    needs_log_probs = False

    def __init__(
        self,
        judge: ServedPolicy,
        question: SelfJudge,
        encode: Callable[[str], list[int]],
        *,
        translate: Callable[[ScoredRow], Sequence[int]] | None = None,
        aggregation: str = "last",
        name: str = "the policy's own judgement",
        address: str | None = None,
    ) -> None:
        check_aggregation(aggregation)
        if not judge.dialect.takes_ids:
            raise CapabilityError(
                f"{judge.abilities.server} takes only text and does not say how "
                "likely given tokens are, so it cannot judge. Use llama.cpp's server, "
                "vLLM or SGLang."
            )
        self.judge, self.name, self.num_bounded = judge, name, 0
        self.address = address
        self._question, self._encode, self._translate = question, encode, translate
        self._aggregation = aggregation
        self._prompts: list[tuple[int, ...]] = []
        self._scores = StepScores()

    @property
    def question_tokens(self) -> int:
        """Tokens of the question that follows a solution."""
        return len(self._question.question)

    def prepare(self, questions: Sequence[str]) -> None:
        """See :class:`tsi.serving.scorer.ServedScorer`."""
        self._prompts = [tuple(self._encode(question)) for question in questions]
        self._scores = StepScores()

    async def ask(self, row: ScoredRow) -> Score:
        """See :class:`tsi.serving.scorer.ServedScorer`."""
        steps = len(row.ends)
        first = steps - 1 if self._aggregation == "last" else 0
        scores, read = [], 0
        for step in range(first, steps):
            prefix = prefix_after(row, step)
            score = self._scores.find(row.problem, prefix.tokens)
            if score is None or prefix is row:
                score, num_tokens = await self._judge(prefix)
                read += num_tokens
                if self._aggregation != "last":
                    self._scores.keep(row.problem, prefix.tokens, score)
            scores.append(score)
        return Score(aggregate_scores(scores, self._aggregation), read)

    async def _judge(self, row: ScoredRow) -> tuple[float, int]:
        """The log-odds of one prefix, and the tokens read for them."""
        solution: Sequence[int] = row.tokens
        if self._translate is not None:
            solution = await asyncio.to_thread(self._translate, row)
        question, yes, no = (
            self._question.question,
            self._question.yes,
            self._question.no,
        )
        if row.stopped and tuple(solution[-1:]) == question[:1]:
            question = question[1:]
        tokens = (*self._prompts[row.problem], *solution, *question)
        choice = await self.judge.choose(tokens, (yes, no))
        self.num_bounded += choice.bounded > 0
        return choice.log_probs[0] - choice.log_probs[1], choice.tokens_read
