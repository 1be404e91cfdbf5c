"""The prompts of problems that enter a lane, read in batches of few sizes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from tsi.engine.model_weights import ModelWeights
from tsi.engine.programs.model_programs import Programs
from tsi.engine.sizing.sizes import Sizes, width_of
from tsi.rewards.reward import Prompts


class PromptBatch(NamedTuple):
    """Prompts that have been read together.

    Attributes:
        number: of problems.
        problems: their indices, padded with the last one, [E].
        places: place of each, padded with an index out of range, [E].
        prompts: of these problems.
        prefill: results of `Programs.prefill`.
    """

    number: int
    problems: Int[np.ndarray, " E"]
    places: Int[np.ndarray, " E"]
    prompts: Prompts
    prefill: Any


class PromptReader:
    """Reads prompts with the policy, and with a reward model of the same tokenizer.

    Args:
        programs: the compiled programs.
        weights: of the models, and temperatures.
        prompts: token ids of all problems, on the host.
        questions: the result of the reward's `prepare`, one row per problem, or None.
        sizes: of the lane.
    """

    def __init__(
        self,
        programs: Programs,
        weights: ModelWeights,
        prompts: Prompts,
        questions: Any,
        sizes: Sizes,
    ) -> None:
        self.programs, self.weights, self.sizes = programs, weights, sizes
        self.prompts = prompts._replace(questions=questions)

    @property
    def width(self) -> int:
        """Positions to which prompts are padded."""
        return self.prompts.tokens.shape[1]

    def read(
        self, problems: list[int], places: Int[np.ndarray, " n"]
    ) -> Iterator[PromptBatch]:
        """Read the prompts of problems, batch by batch.

        Args:
            problems: indices of the problems.
            places: places at which they enter.
        """
        max_prompts = self.sizes.prompts(self.width)
        for start in range(0, len(problems), max_prompts):
            batch = slice(start, start + max_prompts)
            yield self._read(problems[batch], places[batch], max_prompts)

    def _read(
        self, problems: list[int], places: Int[np.ndarray, " n"], max_prompts: int
    ) -> PromptBatch:
        count = len(problems)
        size = width_of(count, max_prompts, self.sizes.shrinks)
        # Padded, so that programs are compiled for few sizes.
        padded = np.asarray(problems + [problems[-1]] * (size - count))
        nowhere = np.full(size - count, self.sizes.problems)
        prompts = jax.tree.map(lambda leaf: leaf[padded], self.prompts)
        params = self.weights.params._replace(prompts=prompts)
        prefill = self.programs.prefill(params, self.sizes.block)
        at = np.concatenate([places, nowhere])
        return PromptBatch(count, padded, at, prompts, prefill)
