"""Tasks of a fixed list of problems: of a file, a package or a benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsi.errors import ConfigurationError
from tsi.experiments.grading.grader import get_grader
from tsi.experiments.tasks.presets import Preset
from tsi.experiments.tasks.task import Seed, Split, Task
from tsi.problem import Problem


def graded_task(
    name: str,
    problems: Sequence[Problem],
    grader: str,
    preset: Preset,
    *,
    settings: Mapping[str, Any],
    citation: str = "",
    licence: str = "",
    shuffled: bool = False,
) -> Task:
    """A task of these problems.

    Args:
        name: of the task.
        problems: all of them.
        grader: name or "module:function", see `tsi.experiments.grading`.
        preset: prompt, step ends and limits.
        settings: that rows record.
        citation, licence: of the problems.
        shuffled: whether fewer problems than all are a random subset, instead of the
            first of the list, which may be sorted by subject.

    Raises:
        ConfigurationError: the grader cannot be imported.
    """
    chosen_grader = get_grader(grader)
    chosen_grader.check(list(problems))
    order: Sequence[Problem] = problems
    if shuffled:
        permutation = np.random.default_rng(0).permutation(len(problems))
        order = [problems[int(i)] for i in permutation]

    def choose(split: Split, count: int | None, seed: Seed) -> list[Problem]:
        if split != "test":
            raise ConfigurationError(
                f"{name} has only test problems, and no split {split!r}; name another "
                "task for training and validation."
            )
        if count is not None and count > len(order):
            raise ConfigurationError(
                f"{name} has {len(order)} problems, not {count}; ask for fewer."
            )
        return list(order[:count])

    return Task(
        name=name,
        problems=choose,
        extract=chosen_grader.extract,
        grader=grader,
        **preset.task_fields(),
        settings=settings,
        citation=citation,
        licence=licence,
    )
