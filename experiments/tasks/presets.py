r"""Prompts, step ends and limits that published work uses, by name.

    steps                 steps that begin with "## Step n:" and end with a blank line,
                          answer in \boxed{}: the form of arXiv 2502.01618
    boxed                 the prompt on the model cards of Qwen2.5-Math; paragraphs are
                          steps
    short-or-steps        few lines for easy problems, numbered steps for others: the
                          form of search-and-learn's runs with Llama
    thinking              a thought is one step, and the solution after it another
    thinking-paragraphs   each paragraph of thought and solution is a step
    plain                 no system text; paragraphs are steps

The wording of `steps` and `short-or-steps` is ours; the requested form is the published
one. A reproduction that needs the published wording passes it with ``--system``.
"""

from typing import Any, NamedTuple

from tsi.errors import UnknownNameError
from tsi.experiments.tasks.prompts import PromptFormat
from tsi.experiments.tasks.task import PARAGRAPH
from tsi.reasoning.limits import SolutionLimits

THOUGHT_END = "</think>"

STEPS = r"""Solve the problem in short steps. Begin each step with a line such as

## Step 1: what this step does

and leave a blank line after each step. Put the final answer into \boxed{} in the last
step, and write nothing after it."""

BOXED = r"Please reason step by step, and put your final answer within \boxed{}."

SHORT_OR_STEPS = r"""If the problem is easy, solve it in a few lines. Otherwise divide
the solution into steps, each with a heading such as

## Step 1: what this step does

and a short calculation below it, with a blank line between steps. In both cases end
with a sentence that gives the final answer in \boxed{}."""


class Preset(NamedTuple):
    """A prompt format, the strings that end steps and solutions, and limits."""

    prompts: PromptFormat
    delimiters: tuple[str, ...] = (PARAGRAPH,)
    limits: SolutionLimits = SolutionLimits(64, 512, 2048)
    stop_strings: tuple[str, ...] = ()

    def task_fields(self) -> dict[str, Any]:
        """The fields of a task that the preset sets."""
        return {
            "prompts": self.prompts,
            "delimiters": self.delimiters,
            "stop_strings": self.stop_strings,
            **self.limits._asdict(),
        }


PRESETS = {
    "steps": Preset(PromptFormat(STEPS)),
    "boxed": Preset(PromptFormat(BOXED)),
    "short-or-steps": Preset(PromptFormat(SHORT_OR_STEPS)),
    "thinking": Preset(
        PromptFormat(BOXED), (THOUGHT_END,), SolutionLimits(2, 16384, 16384)
    ),
    "thinking-paragraphs": Preset(
        PromptFormat(BOXED), (PARAGRAPH, THOUGHT_END), SolutionLimits(512, 1024, 16384)
    ),
    "plain": Preset(PromptFormat()),
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UnknownNameError: there is no such preset; the message lists the known ones.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]
