"""From the options of the command line to a task, or to a task and one problem."""

import dataclasses
from typing import Any

from tsi.errors import ConfigurationError
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.problem_options import DEFAULT_TASK, ProblemOptions
from tsi.experiments.tasks import get_task, task_names
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.tasks.own_file import file_task, read_examples
from tsi.experiments.tasks.presets import get_preset
from tsi.experiments.tasks.problem_file import Columns
from tsi.experiments.tasks.prompts import PromptFormat
from tsi.experiments.tasks.question import question_task
from tsi.experiments.tasks.task import Task
from tsi.experiments.worlds.language_policy import rules_and_examples
from tsi.problem import Problem


def choose_task(options: ProblemOptions) -> Task:
    """The task that the options name, with their prompt, limits and grader.

    Raises:
        TsiError: the task, the file, the preset or the grader is refused.
    """
    if options.problems is None:
        name = DEFAULT_TASK if options.task is None else options.task
        return _adapt(options, get_task(name))
    if options.task is not None:
        raise ConfigurationError(
            f"--task {options.task} and --problems {options.problems} both name "
            "problems; leave one of them out."
        )
    columns = Columns(options.question_column, options.answer_column, options.id_column)
    preset = get_preset(options.preset or "plain")
    grader = options.grader or "math"
    task = file_task(options.problems, columns, grader, preset, task_names())
    return _adapt(options, task)


def choose_problem(
    options: ProblemOptions, text: str, *, has_policy: bool
) -> tuple[Task, Problem]:
    """The task and the problem that a text names.

    Args:
        options: task or file, prompt and grader.
        text: the id of a problem of the task or file; a problem of a generated
            task; or else any question.
        has_policy: whether a policy is named: without task or file, the text is
            then a question of any kind.

    Raises:
        TsiError: see `choose_task`, or the text is not a problem of a generated task.
    """
    task = choose_questions(options, text, has_policy=has_policy)
    if task is not None:
        return task, task.problems("test", 1, 0)[0]
    task = choose_task(options)
    if isinstance(task, GeneratedTask):
        return task, task.problem(text)
    for problem in task.problems("test", None, 0):
        if problem.id == text:
            return task, problem
    if not text.strip():
        raise ConfigurationError("The question is empty; write one.")
    return task, Problem("question", text, "")


def choose_questions(
    options: ProblemOptions, text: str, *, has_policy: bool
) -> Task | None:
    """The task of any question; None if the options name other problems.

    Args:
        options: task or file, prompt and grader.
        text: a question.
        has_policy: whether a policy is named; without one, questions are those of the
            default task.

    Raises:
        TsiError: the question is empty, or see `choose_task`.
    """
    if options.task is not None or options.problems is not None or not has_policy:
        return None
    task = question_task(text, get_preset(options.preset or "plain"))
    if options.grader is not None:
        # Unlike other tasks it has no extractor of its own that the grader would get.
        task = dataclasses.replace(task, extract=get_grader(options.grader).extract)
    return _adapt(options, task)


def _adapt(options: ProblemOptions, task: Task) -> Task:
    """The task with the prompt, the limits and the grader of these options.

    Raises:
        TsiError: the preset, the grader or the file of examples is refused.
    """
    changes: dict[str, Any] = {}
    if options.preset is not None:
        changes |= get_preset(options.preset).task_fields()
    limits = ("max_steps", "max_step_tokens", "max_tokens")
    changes |= {
        name: getattr(options, name)
        for name in limits
        if getattr(options, name) is not None
    }
    for name in limits:
        if changes.get(name) is not None and changes[name] < 1:
            raise ConfigurationError(f"{name} must be at least 1, not {changes[name]}.")
    if options.grader is not None:
        grader = get_grader(options.grader)
        changes |= {"grader": options.grader, "is_correct": None}
        changes["extract"] = grader.extractor_for(task.extract, task.grader)
    task = dataclasses.replace(task, **changes)
    return dataclasses.replace(task, prompts=_prompts(options, task))


def _prompts(options: ProblemOptions, task: Task) -> PromptFormat | None:

    changes: dict[str, Any] = {}
    if options.system is not None:
        changes["system"] = options.system
    if options.few_shot is not None:
        changes["examples"] = read_examples(options.few_shot)
    if options.question_form is not None:
        changes["question"] = options.question_form
    if not changes:
        return task.prompts
    format = task.prompts
    if format is None:
        format = PromptFormat()
        if isinstance(task, GeneratedTask):
            format = rules_and_examples(task)
    return format._replace(**changes).check()
