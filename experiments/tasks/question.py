"""Any question, without a right answer to compare with: for `tsi solve`."""

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.presets import Preset
from tsi.experiments.tasks.task import Seed, Split, Task
from tsi.problem import Problem
from tsi.results.answers import extract_answer


def question_task(question: str, preset: Preset) -> Task:
    """A task of one question; no answer to it is right or wrong.

    Args:
        question: as the policy reads it.
        preset: prompt, step ends and limits.

    Raises:
        ConfigurationError: the question is empty.
    """
    if not question.strip():
        raise ConfigurationError("The question is empty; write one.")

    def problems(split: Split, count: int | None, seed: Seed) -> list[Problem]:
        return [Problem("question", question, "")][:count]

    return Task(
        name="question",
        problems=problems,
        extract=extract_answer,
        is_correct=lambda problem, answer: False,
        **preset.task_fields(),
    )
