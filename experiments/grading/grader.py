"""Graders by name: ``get_grader("math")``, or your own as ``module:function``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.grading import choice, exact, mathematics, numeric
from tsi.experiments.grading.own_grader import find_extractor, find_written
from tsi.problem import Problem
from tsi.results.answers import extract_answer
from tsi.results.canonical import MAX_ANSWER

MAX_SHOWN = 100
"""Characters of an answer in a message."""

Extractor = Callable[[str], str | None]
Shortcut = Callable[[Problem, str], bool | None]


@dataclass(frozen=True)
class Grader:
    """What an answer is, and when it is right.

    Args:
        name: by which :func:`get_grader` finds it.
        function: "module:function", of ``(Problem, answer) -> bool``.
        extract: ``(text) -> answer``, the answer of a text, by which particles vote, or
            None. It is canonical, except for your own function.
        finds_answers: whether `extract` replaces a task's own extractor.
        is_inline: whether the function is quick and safe on untrusted text (bounded
            regular expressions), so that it runs in this process.
        shortcut: ``(Problem, answer) -> bool | None``, quick and safe; None if the
            function must decide.
        prepare: "module:function", what each process calls first, without arguments.
        data: for the function, where a problem's own data does not have the key.
        max_characters: of an answer; longer ones are not graded.
        needs_gold: whether nothing can be graded without a gold answer.
        check_gold: ``(Problem) -> str | None``, what is wrong with a gold answer, as
            the end of a sentence.
    """

    name: str
    function: str
    extract: Extractor = extract_answer
    finds_answers: bool = True
    is_inline: bool = False
    shortcut: Shortcut | None = None
    prepare: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    max_characters: int = 65_536
    needs_gold: bool = True
    check_gold: Callable[[Problem], str | None] | None = None

    def extractor_for(self, extract: Extractor, task_grader: str | None) -> Extractor:
        """What finds the answers that this grader gets in the solutions of a task.

        Args:
            extract: of the task.
            task_grader: name of the task's own grader; None if the task has
                `is_correct`.
        """
        has_own = task_grader is None or not is_named(task_grader)
        return extract if has_own and not self.finds_answers else self.extract

    def check(self, problems: Sequence[Problem]) -> None:
        """Reject gold answers that the grader cannot read.

        Raises:
            ConfigurationError: names the first such problem.
        """
        for problem in problems:
            wrong = None
            is_text = isinstance(problem.answer, str) and problem.answer.strip()
            if self.needs_gold and not is_text:
                wrong = "is empty; write the right answer, or use the task's own grader"
            elif self.check_gold is not None:
                wrong = self.check_gold(problem)
            if wrong is not None:
                excerpt = repr(problem.answer)
                if len(excerpt) > MAX_SHOWN:
                    excerpt = f"{excerpt[:MAX_SHOWN]}…"
                raise ConfigurationError(
                    f"The gold answer {excerpt} of problem {problem.id!r} {wrong}."
                )


GRADERS = {
    grader.name: grader
    for grader in (
        Grader(
            "math",
            "tsi.experiments.grading.mathematics:is_correct",
            shortcut=mathematics.shortcut,
            prepare="tsi.experiments.grading.mathematics:prepare",
            max_characters=MAX_ANSWER,
            check_gold=mathematics.check_gold,
        ),
        Grader(
            "numeric",
            "tsi.experiments.grading.numeric:is_correct",
            extract=numeric.extract,
            is_inline=True,
            shortcut=numeric.is_correct,
            check_gold=numeric.check_gold,
        ),
        Grader(
            "choice",
            "tsi.experiments.grading.choice:is_correct",
            extract=choice.extract,
            is_inline=True,
            shortcut=choice.is_correct,
            check_gold=choice.check_gold,
        ),
        Grader(
            "exact",
            "tsi.experiments.grading.exact:is_correct",
            extract=exact.extract,
            is_inline=True,
            shortcut=exact.is_correct,
        ),
    )
}


def is_named(name: str) -> bool:
    """Whether a grader is one of `GRADERS`, with or without a tolerance."""
    return name.partition(":")[0] in GRADERS


def get_grader(name: str) -> Grader:
    """The grader of that name.

    Args:
        name: "math", "numeric", "choice", "exact", or "module:function" of a function
            ``(problem, answer) -> bool``. Your own function gets the answer as written,
            or as its attribute ``extract`` finds it. "numeric:0.01" has a relative
            tolerance of 1 %.

    Raises:
        UnknownNameError: there is no such grader; the message lists the known ones.
        ConfigurationError: there is no such function.
    """
    if name in GRADERS:
        return GRADERS[name]
    kind, colon, setting = name.partition(":")
    if kind == "numeric":
        if numeric.tolerance_of(setting) is None:
            raise ConfigurationError(
                f"{name!r} has no tolerance; write a relative one from 0, such as "
                "numeric:0.01."
            )
        return replace(GRADERS[kind], name=name, data={"tolerance": setting})
    if colon and kind in GRADERS:
        raise ConfigurationError(
            f"{name!r}: the grader {kind} takes no settings; write {kind}."
        )
    if not colon:
        raise UnknownNameError("grader", name, [*GRADERS, "module:function"])
    own = find_extractor(name)
    return Grader(
        name,
        name,
        own or find_written,
        finds_answers=own is not None,
        needs_gold=False,
    )
