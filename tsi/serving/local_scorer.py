"""A reward model on this machine that scores text from a server.

It reads only the new part of a row. Keys and values of earlier texts are kept by
problem and solution (:mod:`tsi.serving.reading_slots`); the least recently used ones
are overwritten. A problem's prompt is read once, and its cost is counted for the row
that was scored first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tsi.errors import ConfigurationError
from tsi.rewards.transcripts import Continuation, Transcript
from tsi.serving.local_rendering import Renderer
from tsi.serving.reading_slots import ReadingSlots, SlotReading, bytes_per_slot
from tsi.serving.scorer import Score, ScoredRow
from tsi.serving.step_scores import aggregate_scores

MAX_ROWS = 64
"""The maximum number of rows that are read at once."""
MAX_BYTES = 2**31
MAX_SLOTS = 2**12

Key = tuple[int, tuple[int, ...]]
"""A problem and the tokens of a solution."""


class Stored(NamedTuple):
    """A text that has been read: its slot and its transcript."""

    slot: int
    transcript: Transcript


class LocalScorer:
    """A :class:`tsi.serving.scorer.Scorer`; see the module docstring.

    Args:
        model: the reward model.
        renderer: converts rows to ids of the model.
        name: for rows of results.
        max_bytes: the maximum number of bytes of keys and values that are kept, without
            the weights.

    Raises:
        ConfigurationError: `max_bytes` is not enough for two texts.
    """

    needs_log_probs = False

    def __init__(
        self, model: Any, renderer: Renderer, name: str, max_bytes: int = MAX_BYTES
    ) -> None:
        each = bytes_per_slot(model, renderer.max_tokens)
        if max_bytes < 2 * each:
            raise ConfigurationError(
                f"The reward model keeps {each:,} bytes per text of "
                f"{renderer.max_tokens} tokens, and may use {max_bytes:,}. Lower the "
                "limits of a solution, or let it use more."
            )
        self.renderer, self.name = renderer, name
        self.num_slots = min(max_bytes // each, MAX_SLOTS)
        self._slots = ReadingSlots(
            model, renderer.values, renderer.max_tokens, self.num_slots
        )
        self._stored: OrderedDict[Key, Stored] = OrderedDict()

    def prepare(self, questions: Sequence[str]) -> None:
        """See :class:`tsi.serving.scorer.Scorer`.

        Raises:
            PromptTooLongError: a question leaves no room for a solution.
        """
        self.renderer.prepare(questions)
        self._stored.clear()

    def score(self, rows: Sequence[ScoredRow]) -> list[Score | Exception]:
        """See :class:`tsi.serving.scorer.Scorer`."""
        # Rows of one call may continue each other's prompt, so a batch overwrites at
        # most half of the slots.
        size = max(1, min(MAX_ROWS, self.num_slots // 2))
        scores: list[Score | Exception] = []
        for start in range(0, len(rows), size):
            scores += self._score(rows[start : start + size])
        return scores

    def _score(self, rows: Sequence[ScoredRow]) -> list[Score | Exception]:
        prompts = self._read_prompts(rows)
        scores: list[Score | Exception] = [Score(float("nan"))] * len(rows)
        parents: list[int] = []
        texts: list[tuple[int, Continuation]] = []
        for index, row in enumerate(rows):
            parent = self._find(row)
            try:
                text = self.renderer.render(parent.transcript, row)
            except Exception as error:
                # A text that cannot be rendered fails only its own problem.
                scores[index] = error
                continue
            if text.rendering is not None:
                texts.append((index, text))
                parents.append(parent.slot)
        slots = self._choose_slots(len(texts))
        readings = [
            SlotReading(text.transcript.tokens, text.common, parent, slot)
            for (_, text), parent, slot in zip(texts, parents, slots, strict=True)
        ]
        outputs = self._slots.read(readings) if readings else []
        for (index, text), slot, output in zip(texts, slots, outputs, strict=True):
            transcript, row = text.transcript, rows[index]
            values = np.concatenate([transcript.values[: text.common], output])
            transcript = transcript._replace(values=values)
            self._keep((row.problem, row.tokens), Stored(slot, transcript))
            assert text.rendering is not None
            steps = [float(values[mark]) for mark in text.rendering.marks]
            log_odds = aggregate_scores(steps, self.renderer.aggregation)
            scores[index] = Score(log_odds, len(output) + prompts.get(index, 0))
        return scores

    def _read_prompts(self, rows: Sequence[ScoredRow]) -> dict[int, int]:
        """Read prompts that are not stored.

        Returns:
            Tokens that were read, by the index of the first row of each problem.
        """
        first: dict[int, int] = {}
        for index, row in enumerate(rows):
            if (row.problem, ()) not in self._stored:
                first.setdefault(row.problem, index)
            else:
                self._stored.move_to_end((row.problem, ()))
        transcripts = {problem: self.renderer.begin(problem) for problem in first}
        slots = self._choose_slots(len(transcripts))
        readings = [
            SlotReading(transcript.tokens, 0, 0, slot)
            for transcript, slot in zip(transcripts.values(), slots, strict=True)
        ]
        outputs = self._slots.read(readings) if readings else []
        for (problem, transcript), slot, output in zip(
            transcripts.items(), slots, outputs, strict=True
        ):
            transcript = transcript._replace(values=output)
            self._keep((problem, ()), Stored(slot, transcript))
        return {first[p]: len(transcripts[p].tokens) for p in transcripts}

    def _find(self, row: ScoredRow) -> Stored:
        """The longest stored prefix of a row that ends with a step."""
        for end in (*row.ends[::-1], 0):
            key = row.problem, row.tokens[:end]
            if key in self._stored:
                self._stored.move_to_end(key)
                return self._stored[key]
        # Its prompt was overwritten for other rows of this batch.
        nothing = np.zeros(0, np.int32)
        return Stored(0, self.renderer.begin(row.problem)._replace(tokens=nothing))

    def _choose_slots(self, count: int) -> list[int]:
        """Slots to be overwritten: unused ones, then the least recently used ones."""
        used_slots = {stored.slot for stored in self._stored.values()}
        slots = [slot for slot in range(self.num_slots) if slot not in used_slots][
            :count
        ]
        while len(slots) < count:
            _, stored = self._stored.popitem(last=False)
            slots.append(stored.slot)
        return slots

    def _keep(self, key: Key, stored: Stored) -> None:
        self._stored[key] = stored
        self._stored.move_to_end(key)
