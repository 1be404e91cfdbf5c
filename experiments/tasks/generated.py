"""A generated task: worked solutions and an exact verifier of prefixes.

Samplers, training and the scaling experiment share its definition of a right answer.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.task import Split, Task
from tsi.problem import Problem

# Of 10 distinct problems 8 are for training, 1 for validation and 1 for the test.
SPLIT_OF_TENTH: tuple[Split, ...] = (*("train",) * 8, "validation", "test")

DELIMITER = "\n"
NUM_PROBLEMS = 420
"""Number of problems if none is given: standard errors are below 2.5 points."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedTask(Task):
    """A task with worked solutions and an exact verifier of prefixes.

    Texts are short, because the embedded models read and write characters, and every
    character costs a forward pass. There is one delimiter, and a text that ends with it
    is unfinished and has no answer. Splits share no problem, whatever the seeds.

    Attributes:
        alphabet: all characters of prompts and solutions.
        max_prompt_tokens: length of the longest prompt, in characters.
        problem: ``(prompt) -> Problem``; raises ConfigurationError on a malformed
            prompt.
        solution: ``(problem, rng) -> str``, a right solution.
        is_on_track: ``(problem, prefix) -> bool``, whether a prefix (complete steps, or
            a finished text) can still lead to a right answer.
        models: name of the task whose trained models solve this one too; empty for its
            own name.
        rules: tells a model that was not trained on the task what to do.
    """

    alphabet: str
    max_prompt_tokens: int
    problem: Callable[[str], Problem]
    solution: Callable[[Problem, np.random.Generator], str]
    is_on_track: Callable[[Problem, str], bool]
    rules: str = ""
    models: str = ""

    @property
    def own_policy(self) -> str:
        """The name of the policy that was trained on the task, if there is one."""
        return f"{self.models or self.name}-policy"

    @property
    def own_reward(self) -> str:
        """The name of its reward model."""
        return f"{self.models or self.name}-reward"

    @property
    def delimiter(self) -> str:
        """The string that ends a step."""
        return self.delimiters[0]

    def verify(self, problem: Problem, text: str) -> bool:
        """Whether a generated text is finished and its answer is right."""
        assert self.is_correct is not None
        return self.is_correct(problem, self.extract(text))


def split_of(identity: str) -> Split:
    """The split of a problem, from a hash of its identity."""
    return SPLIT_OF_TENTH[zlib.crc32(identity.encode()) % 10]


def distinct_problems(
    draws: Iterator[tuple[str, Problem]], split: Split, count: int | None
) -> list[Problem]:
    """The first ``count`` distinct problems of a stream that fall into a split.

    Args:
        draws: pairs of identity and problem; problems of one identity are the same.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        count: how many problems to return, numbered from 0; `NUM_PROBLEMS` if None.

    Raises:
        ConfigurationError: the split's name is unknown, or the task runs out of
            problems.
    """
    if split not in SPLIT_OF_TENTH:
        raise ConfigurationError(
            f"There is no split {split!r}; ask for 'train', 'validation' or 'test'."
        )
    if count is None:
        count = NUM_PROBLEMS
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
