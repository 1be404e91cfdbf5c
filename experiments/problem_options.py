"""Command-line options for problems: a task by name, a file, or any question."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

DEFAULT_TASK = "chain"


class ProblemOptions(NamedTuple):
    r"""Problems, how they are asked, and how answers are graded.

    Attributes:
        task: chain, countdown, chain_long or countdown_four, for which the package has
            models; chain_sum, short sums; gym:NAME or gym:NAME,SETTING=VALUE, a
            generator of reasoning-gym; champ; math500, aime24, aime25, gsm8k, numglue2,
            financebench or gpqa, which are fetched.
        problems: your own file instead: .jsonl, .json, .csv or .parquet, with the
            columns question and answer.
        split: of a generated task; choose parameters on validation problems.
        question_column: name of the column of questions in that file.
        answer_column: name of the column of answers.
        id_column: name of the column of ids; rows are numbered if there is none.
        preset: prompt, step ends and limits of published work: steps, boxed,
            short-or-steps, thinking, thinking-paragraphs or plain.
        system: system text, instead of the task's or the preset's.
        few_shot: a file of worked examples with the columns question and solution.
        question_form: text around a problem, with {question} in its place.
        grader: math, numeric, numeric:TOLERANCE, choice, exact, or your own
            module:function; by default the task's, and math for a file.
        max_steps: maximum number of steps.
        max_step_tokens: maximum number of tokens per step.
        max_tokens: maximum number of tokens of a solution.
    """

    task: str | None = None
    problems: Path | None = None
    split: Literal["test", "validation", "train"] = "test"
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


Problems = Annotated[
    ProblemOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="problem")
]
"""The type of an argument whose fields are options of the command itself."""
