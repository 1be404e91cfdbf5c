"""A task: problems, how they are asked, how solutions are cut into steps and graded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.prompts import PromptFormat
from tsi.problem import Problem

Split = Literal["train", "validation", "test"]
Seed = int | Sequence[int]

PARAGRAPH = "\n\n"
"""Ends a step of a model that writes prose."""

MAX_STEPS, MAX_STEP_TOKENS, MAX_TOKENS = 64, 512, 2048
"""Default limits, for solutions of mathematical problems in prose."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A family of problems: how they are asked, how solutions are cut and graded.

    A solution is a sequence of steps, each of which ends with a delimiter, and ends
    with an end token of the policy or a stop string.

    Attributes:
        name: by which the task is found, and which rows record.
        problems: ``(split, count, seed) -> list[Problem]``, distinct problems, at most
            ``count``, or all if it is None; the first ones are the same for every
            count.
        extract: ``(text) -> str | None``, the answer of a generated text, canonical or
            as written.
        is_correct: ``(problem, answer) -> bool``, whether such an answer is right; it
            runs in this process, so it must be quick and safe on untrusted text. None
            if there is a `grader`.
        max_steps: maximum number of steps.
        max_step_tokens: maximum length of a step with its delimiter, in tokens, or in
            characters if ``max_tokens`` is None.
        max_tokens: maximum length of a solution, in tokens of any model.
        delimiters: strings that end a step.
        stop_strings: strings that end a solution.
        prompts: system text and worked examples; None for only the problem.
        grader: name or "module:function" of a grader that runs in a separate process
            (:mod:`tsi.experiments.grading`); None if there is `is_correct`.
        settings: further settings that rows record, such as the hash of a file.
        citation: what to cite.
        licence: of the problems, and where they come from.
    """

    name: str
    problems: Callable[[Split, int | None, Seed], list[Problem]]
    extract: Callable[[str], str | None]
    is_correct: Callable[[Problem, str | None], bool] | None = None
    max_steps: int = MAX_STEPS
    max_step_tokens: int = MAX_STEP_TOKENS
    max_tokens: int | None = MAX_TOKENS
    delimiters: tuple[str, ...] = (PARAGRAPH,)
    stop_strings: tuple[str, ...] = ()
    prompts: PromptFormat | None = None
    grader: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    citation: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        """Refuse a task without exactly one way to grade.

        Raises:
            ConfigurationError: see above.
        """
        if (self.is_correct is None) == (self.grader is None):
            raise ConfigurationError(
                f"The task {self.name!r} needs is_correct, which runs in this process, "
                "or a grader, which runs in a separate one, and not both."
            )
