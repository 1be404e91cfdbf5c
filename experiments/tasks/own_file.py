"""A task from the user's own file, and worked examples from another."""

import json
import string
from collections.abc import Sequence
from pathlib import Path

from tsi.errors import ConfigurationError
from tsi.experiments.tasks.data_files import file_sha256
from tsi.experiments.tasks.listed import graded_task
from tsi.experiments.tasks.presets import Preset
from tsi.experiments.tasks.problem_file import Columns, read_problems
from tsi.experiments.tasks.task import Task
from tsi.problem import Problem

MAX_EXAMPLES = 100
CHOICES_BELOW = "\n\n(A) "
"""Between a question and its first choice."""


def file_task(
    path: Path,
    columns: Columns,
    grader: str,
    preset: Preset,
    reserved: Sequence[str] = (),
) -> Task:
    """The task of a file's problems; its name is that of the file.

    With the grader ``choice``, a list in the column ``choices`` is shown below the
    question, with a letter before each.

    Args:
        path: see :func:`tsi.experiments.tasks.problem_file.read_problems`.
        columns: names of the columns.
        grader: name or "module:function".
        preset: prompt, step ends and limits.
        reserved: names of tasks; a file of such a name has the name "file:NAME".

    Raises:
        ConfigurationError: the file or the grader is refused.
    """
    problems = read_problems(path, columns)
    if grader == "choice":
        problems = [show_choices(problem, path) for problem in problems]
    return graded_task(
        f"file:{path.stem}" if path.stem in reserved else path.stem,
        problems,
        grader,
        preset,
        settings={"problems_sha256": file_sha256(path)},
    )


def read_examples(path: Path) -> tuple[tuple[str, str], ...]:
    """Pairs of question and worked solution, from a file with these two columns.

    Raises:
        ConfigurationError: the file is refused, or has more than `MAX_EXAMPLES` rows.
    """
    advice = "Worked examples have the columns question and solution."
    examples = read_problems(path, Columns("question", "solution", "id", advice))
    if len(examples) > MAX_EXAMPLES:
        raise ConfigurationError(
            f"{path} has {len(examples)} worked examples, which all precede each "
            f"problem; write at most {MAX_EXAMPLES}."
        )
    return tuple((example.prompt, example.answer) for example in examples)


def show_choices(problem: Problem, path: Path) -> Problem:
    """The problem with its choices below the question, with a letter before each.

    Raises:
        ConfigurationError: the choices are not a list of texts or numbers, or they are
            too few or too many.
    """
    choices = problem.data.get("choices")
    if choices is None:
        return problem
    letters = string.ascii_uppercase
    place = f"{path}, problem {problem.id!r}, column 'choices'"
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(letters):
        raise ConfigurationError(f"{place}: write a list of 2 to {len(letters)} texts.")
    lines = []
    for letter, choice in zip(letters, choices, strict=False):
        if isinstance(choice, bool) or not isinstance(choice, str | int | float):
            raise ConfigurationError(
                f"{place}: choice {letter} is a JSON {type(choice).__name__}, and must "
                f"be a text, not {json.dumps(choice)[:60]}."
            )
        lines.append(f"({letter}) {choice}")
    shown = "\n".join(lines).removeprefix("(A) ")
    return problem._replace(prompt=f"{problem.prompt}{CHOICES_BELOW}{shown}")
