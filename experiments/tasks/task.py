"""A generated task: problems, worked solutions and an exact verifier.

A task is data and pure functions; samplers, training and the scaling experiment share
its definition of a right answer. Texts are short, because the embedded models read and
write characters, and every character costs a forward pass.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tsi.errors import ConfigurationError
from tsi.models.tokens.tokenizer import Tokenizer
from tsi.problem import Problem

Split = Literal["train", "validation", "test"]

# Of 10 distinct problems 8 are for training, 1 for validation and 1 for the test.
SPLIT_OF_TENTH: tuple[Split, ...] = (*("train",) * 8, "validation", "test")

DELIMITER = "\n"


class Task(NamedTuple):
    """A family of problems whose answers are verified exactly.

    A solution is a few lines, one step each, with ``DELIMITER`` between them and the
    end-of-sequence token after the last: a text that ends with the delimiter is
    unfinished and has no answer.

    Attributes:
        name: by which the task is found.
        alphabet: all characters of prompts and solutions.
        max_prompt_tokens: length of the longest prompt, in characters.
        max_steps: number of steps of the longest solution.
        max_step_tokens: length of the longest step with its delimiter, in characters.
        problems: ``(split, count, seed) -> list[Problem]``, distinct problems; the
            first ones are the same for every count, and splits share no problem,
            whatever the seeds.
        problem: ``(prompt) -> Problem``; raises ConfigurationError on a malformed
            prompt.
        solution: ``(problem, rng) -> str``, a right solution.
        extract: ``(text) -> str | None``, the canonical answer of a generated text.
        is_correct: ``(problem, answer) -> bool``, whether such an answer is right.
        is_on_track: ``(problem, prefix) -> bool``, whether a prefix (complete steps, or
            a finished text) can still lead to a right answer.
        delimiter: ends a step within a solution.
        inline: whether ``is_correct`` is quick and safe on untrusted text, so that it
            need not run in a separate process.
        max_tokens: the longest solution, in tokens of any model; if it is given,
            ``max_step_tokens`` is in tokens too. If None, limits are in characters.
        prompt_encoder: ``(tokenizer) -> (prompt) -> token ids``, encodes prompts for a
            model; None for the default: the problem alone if the model was trained on
            the task, and worked examples before it otherwise.
    """

    name: str
    alphabet: str
    max_prompt_tokens: int
    max_steps: int
    max_step_tokens: int
    problems: Callable[[Split, int, int | Sequence[int]], list[Problem]]
    problem: Callable[[str], Problem]
    solution: Callable[[Problem, np.random.Generator], str]
    extract: Callable[[str], str | None]
    is_correct: Callable[[Problem, str | None], bool]
    is_on_track: Callable[[Problem, str], bool]
    delimiter: str = DELIMITER
    inline: bool = True
    max_tokens: int | None = None
    prompt_encoder: Callable[[Tokenizer], Callable[[str], list[int]]] | None = None

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether a generated text is finished and its answer is right."""
        return self.is_correct(problem, self.extract(text))


def split_of(identity: str) -> Split:
    """The split of a problem, from a hash of its identity."""
    return SPLIT_OF_TENTH[zlib.crc32(identity.encode()) % 10]


def distinct_problems(
    draws: Iterator[tuple[str, Problem]], split: Split, count: int
) -> list[Problem]:
    """The first ``count`` distinct problems of a stream that fall into a split.

    Args:
        draws: pairs of identity and problem; problems of one identity are the same.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        count: how many problems to return, numbered from 0.

    Raises:
        ConfigurationError: the split's name is unknown, or the task runs out of
            problems.
    """
    if split not in SPLIT_OF_TENTH:
        raise ConfigurationError(
            f"There is no split {split!r}; ask for 'train', 'validation' or 'test'."
        )
    chosen_problems: dict[str, Problem] = {}
    num_misses = 0
    while len(chosen_problems) < count:
        identity, problem = next(draws)
        if split_of(identity) != split or identity in chosen_problems:
            num_misses += 1
            if num_misses > 1000 * (count + 10):
                raise ConfigurationError(
                    f"There are only about {len(chosen_problems)} distinct {split} "
                    f"problems, not {count}; ask for fewer."
                )
            continue
        chosen_problems[identity] = problem._replace(id=len(chosen_problems))
    return list(chosen_problems.values())
