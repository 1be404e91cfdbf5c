"""A policy behind a server: draws steps, and reads the probabilities of given ones."""

import asyncio
import dataclasses
from collections.abc import Sequence

from tsi.errors import CapabilityError
from tsi.models.tokens.spelling import Spelling
from tsi.serving.abilities import Abilities
from tsi.serving.choice import Choice
from tsi.serving.client import Client
from tsi.serving.dialect import Dialect, Drawing
from tsi.serving.hidden_tokens import read_hidden_tokens
from tsi.serving.llama_cpp import LlamaCpp
from tsi.serving.llama_replies import HiddenTokensError
from tsi.serving.spelling import ServerTokenizer, TextSpelling
from tsi.serving.step import ServedStep, StepRequest, check_step


@dataclasses.dataclass(frozen=True)
class ServedPolicy:
    """A language model behind a server.

    Attributes:
        client: client of the server.
        dialect: protocol of the server.
        abilities: abilities of the server.
        spelling: converts prompts and texts to ids or code points.
        together: whether all rows of a step share one request, if the server takes
            lists. Their random numbers are then the server's own, and no run can be
            repeated. Otherwise only rows with the same prefix share a request, if the
            server draws copies from one seed; all other rows have their own request and
            seed.
        whole_token: id of a token that consists of complete characters; None if none is
            known.
    """

    client: Client
    dialect: Dialect
    abilities: Abilities
    spelling: Spelling
    together: bool = False
    whole_token: int | None = None

    @property
    def name(self) -> str:
        """The policy's address, for result rows and messages."""
        return f"served:{self.client.address}"

    def groups(
        self, requests: Sequence[StepRequest], *, judged: bool = False
    ) -> list[list[int]]:
        """Groups of requests that are sent together, by index, in the order of sending.

        Args:
            requests: of one turn of a problem.
            judged: whether the server reads the steps again immediately. llama.cpp's
                server does not cache copies of a prefix, so each step then has a
                separate request.

        The first request of each prefix is sent before all others. On llama.cpp's
        server it then finds the prefix in its slot, which other requests would
        overwrite.
        """
        lists = self.together and self.dialect.takes_lists
        numbers = number_prefixes(requests)
        sent_together: dict[tuple[int, int], list[int]] = {}
        for index, (request, number) in enumerate(zip(requests, numbers, strict=True)):
            key = request.max_tokens, 0 if lists else number
            sent_together.setdefault(key, []).append(index)
        first: list[list[int]] = []
        others: list[list[int]] = []
        for group in sent_together.values():
            copies = len({numbers[index] for index in group}) == 1
            size = self.abilities.copies if copies else len(group)
            if copies and judged and not self.dialect.keeps_copies:
                size = 1
            parts = [group[i : i + size] for i in range(0, len(group), size)]
            first.append(parts[0])
            others += parts[1:]
        return first + others

    async def draw(
        self, requests: Sequence[StepRequest], drawing: Drawing
    ) -> list[ServedStep]:
        """Draw the steps of one group.

        Raises:
            CapabilityError: log p of the drawn step cannot be found.
            ServerError: the server refuses, fails for too long, or answers nonsense.
        """
        call = self.dialect.call(requests, drawing)
        if call.streamed:
            reply = await self.client.events(call.path, call.body, call.is_enough)
        else:
            reply = await self.client.post(call.path, call.body)
        try:
            steps = self.dialect.steps(reply, requests, drawing)
        except HiddenTokensError:
            assert isinstance(self.dialect, LlamaCpp), "No other server hides tokens."
            whole = next(iter(drawing.end_ids), self.whole_token)
            steps = await read_hidden_tokens(
                self.client, self.dialect, requests, drawing, reply, whole
            )
        if len({request.prefix for request in requests}) == 1:
            # It was sent once.
            steps = [
                step._replace(prompt_tokens=0, cached_tokens=0) if place else step
                for place, step in enumerate(steps)
            ]
        if self.dialect.takes_ids:
            for step, request in zip(steps, requests, strict=True):
                check_step(step, request)
        spelling = self.spelling
        if isinstance(spelling, TextSpelling):
            # In another thread, since tokenising a long text takes milliseconds.
            pairs = zip(requests, steps, strict=True)
            found = [
                await asyncio.to_thread(spelling.is_retokenized, request.prefix, step)
                for request, step in pairs
            ]
            steps = [
                step._replace(is_retokenized=is_other)
                for step, is_other in zip(steps, found, strict=True)
            ]
        if isinstance(self.spelling, ServerTokenizer):
            for step in steps:
                if step.has_end_token and step.tokens:
                    self.spelling.know_end(step.tokens[-1])
        return steps

    async def log_prob(self, prefix: Sequence[int], step: Sequence[int]) -> float:
        """log p of a step after a prefix, at temperature 1.

        Args:
            prefix: prompt and solution so far, at least one id.
            step: ids.

        Raises:
            ServerError: see `draw`.
        """
        tokens = [*prefix, *step]
        call = self.dialect.log_probs_call(tokens, self.abilities.model)
        assert call is not None, "Abilities.reads_prompts is False"
        reply = await self.client.post(call.path, call.body)
        return float(sum(self.dialect.log_probs(reply, tokens)[len(prefix) - 1 :]))

    async def log_probs(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[float]:
        """The same for several prefixes and steps."""
        return list(await asyncio.gather(*(self.log_prob(*pair) for pair in pairs)))

    async def choose(self, tokens: Sequence[int], candidates: Sequence[int]) -> Choice:
        """The probabilities of candidates for the next token, at temperature 1.

        It runs in the thread of its own client and may be awaited in another one.

        Args:
            tokens: ids of the prefix, at least one.
            candidates: ids, at least two.

        Raises:
            CapabilityError: the server does not take ids.
            ServerError: see `draw`.
        """
        call = self.dialect.choice_call(tokens, candidates, self.abilities.model)
        if call is None:
            raise CapabilityError(
                f"{self.abilities.server} takes only text and cannot say how likely a "
                "given next token is. Use llama.cpp's server, vLLM or SGLang."
            )
        request = self.client.submit(self.client.post(call.path, call.body))
        return self.dialect.read_choice(await asyncio.wrap_future(request), candidates)


def number_prefixes(requests: Sequence[StepRequest]) -> list[int]:
    """A number for each request, the same for equal prefixes.

    A tuple computes its hash anew each time, so a prefix that several requests share as
    one object is looked up once.
    """
    by_object: dict[int, int] = {}
    by_value: dict[tuple[int, ...], int] = {}
    for request in requests:
        name = id(request.prefix)
        if name not in by_object:
            by_object[name] = by_value.setdefault(request.prefix, len(by_value))
    return [by_object[id(request.prefix)] for request in requests]
