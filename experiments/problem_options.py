"""Command-line options for problems: a task by name, a file, or any question."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from tsi.errors import ConfigurationError
from tsi.problem import Problem

if TYPE_CHECKING:
    from tsi.experiments.tasks.presets import Preset
    from tsi.experiments.tasks.task import Task

DEFAULT_TASK = "chain"


class ProblemOptions(NamedTuple):
    r"""Problems, how they are asked, and how answers are graded.

    Attributes:
        task: chain or countdown, for which the package has models; gym:NAME or
            gym:NAME,SETTING=VALUE, a generator of reasoning-gym; champ; math500,
            aime24, aime25, gsm8k, numglue2, financebench or gpqa, which are fetched.
        problems: a file of one's own instead: .jsonl, .json, .csv or .parquet, with a
            column question and a column answer.
        question_column: name of the column of questions in that file.
        answer_column: name of the column of answers.
        id_column: name of the column of ids; rows are numbered if there is none.
        preset: prompt, step ends and limits of published work: steps, boxed,
            short-or-steps, thinking, thinking-paragraphs or plain.
        system: system text, instead of the task's or the preset's.
        few_shot: a file of worked examples with the columns question and solution.
        question_form: the form of a question; {question} stands for the problem.
        grader: math, numeric, numeric:TOLERANCE, choice, exact, or module:function of
            one's own; by default the task's, and math for a file.
        max_steps: number of steps of the longest solution.
        max_step_tokens: length of the longest step, in tokens.
        max_tokens: length of the longest solution, in tokens.
    """

    task: str | None = None
    problems: Path | None = None
    question_column: str = "question"
    answer_column: str = "answer"
    id_column: str = "id"
    preset: str | None = None
    system: str | None = None
    few_shot: Path | None = None
    question_form: str | None = None
    grader: str | None = None
    max_steps: int | None = None
    max_step_tokens: int | None = None
    max_tokens: int | None = None

    @property
    def name(self) -> str:
        """The name of the task, or of the file without its ending."""
        if self.problems is not None:
            return self.problems.stem
        return (self.task or DEFAULT_TASK).replace(":", "-")

    def load(self) -> "Task":
        """The task with these options.

        Raises:
            TsiError: the task, the file, the preset or the grader is refused.
        """
        from tsi.experiments.tasks import get_task
        from tsi.experiments.tasks.own_file import file_task
        from tsi.experiments.tasks.presets import get_preset
        from tsi.experiments.tasks.problem_file import Columns

        if self.problems is None:
            return self.adapt(get_task(self.task or DEFAULT_TASK))
        if self.task is not None:
            raise ConfigurationError(
                f"--task {self.task} and --problems {self.problems} both name "
                "problems; leave one of them out."
            )
        columns = Columns(self.question_column, self.answer_column, self.id_column)
        preset = get_preset(self.preset or "plain")
        return self.adapt(
            file_task(self.problems, columns, self.grader or "math", preset)
        )

    def load_for(self, text: str, *, has_policy: bool) -> "tuple[Task, Problem]":
        """The task and the problem that a user means by a text.

        Args:
            text: the id of a problem of the task or file; a problem of a generated
                task; or else any question.
            has_policy: whether a policy is named: without task or file, the text is
                then a question of any kind.

        Raises:
            TsiError: see `load`, or the text is no problem of a generated task.
        """
        from tsi.experiments.tasks.generated import GeneratedTask
        from tsi.experiments.tasks.presets import get_preset
        from tsi.experiments.tasks.question import question_task

        if self.task is None and self.problems is None and has_policy:
            preset = get_preset(self.preset or "plain")
            task = self.adapt(question_task(text, preset))
            return task, task.problems("test", 1, 0)[0]
        task = self.load()
        if isinstance(task, GeneratedTask):
            return task, task.problem(text)
        for problem in task.problems("test", None, 0):
            if problem.id == text:
                return task, problem
        if not text.strip():
            raise ConfigurationError("The question is empty; write one.")
        return task, Problem("question", text, "")

    def adapt(self, task: "Task") -> "Task":
        """The task with the prompt, the limits and the grader of these options.

        Raises:
            TsiError: the preset, the grader or the file of examples is refused.
        """
        from tsi.experiments.grading.grader import get_grader
        from tsi.experiments.tasks.presets import get_preset

        changes: dict[str, Any] = {}
        if self.preset is not None:
            changes |= _of_preset(get_preset(self.preset))
        limits = ("max_steps", "max_step_tokens", "max_tokens")
        changes |= {
            name: getattr(self, name)
            for name in limits
            if getattr(self, name) is not None
        }
        for name in limits:
            if changes.get(name) is not None and changes[name] < 1:
                raise ConfigurationError(
                    f"{name} must be at least 1, not {changes[name]}."
                )
        if self.grader is not None:
            changes |= {
                "grader": self.grader,
                "is_correct": None,
                "extract": get_grader(self.grader).extract,
            }
        task = dataclasses.replace(task, **changes)
        return dataclasses.replace(task, prompts=self._prompts(task))

    def _prompts(self, task: "Task") -> Any:
        from tsi.experiments.tasks.generated import GeneratedTask
        from tsi.experiments.tasks.own_file import read_examples
        from tsi.experiments.tasks.prompts import PromptFormat
        from tsi.experiments.worlds.language_policy import rules_and_examples

        changes: dict[str, Any] = {}
        if self.system is not None:
            changes["system"] = self.system
        if self.few_shot is not None:
            changes["examples"] = read_examples(self.few_shot)
        if self.question_form is not None:
            changes["question"] = self.question_form
        if not changes:
            return task.prompts
        format = task.prompts
        if format is None:
            format = PromptFormat()
            if isinstance(task, GeneratedTask):
                format = rules_and_examples(task)
        return format._replace(**changes).check()


def _of_preset(preset: "Preset") -> dict[str, Any]:
    return {
        "prompts": preset.prompts,
        "delimiters": preset.delimiters,
        "stop_strings": preset.stop_strings,
        **preset.limits._asdict(),
    }


Problems = Annotated[
    ProblemOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="problem")
]
"""The type of an argument whose fields are options of the command itself."""
