"""Tasks by name: generated, of packages, and published ones that are fetched.

chain, countdown, chain_sum   generated here, with exact verifiers of prefixes
chain_long, countdown_four    the hard problems of two of them
gym:NAME[,SETTING=VALUE...]   a generator of reasoning-gym
champ                         competition problems, from a package
math500, aime24, aime25, gsm8k, numglue2, financebench, gpqa   published
"""

from tsi.errors import UnknownNameError
from tsi.experiments.tasks.chain import CHAIN, CHAIN_LONG
from tsi.experiments.tasks.chain_sum import CHAIN_SUM
from tsi.experiments.tasks.champ import champ_task
from tsi.experiments.tasks.countdown import COUNTDOWN, COUNTDOWN_FOUR
from tsi.experiments.tasks.generated import GeneratedTask
from tsi.experiments.tasks.gym import PREFIX, gym_task
from tsi.experiments.tasks.prompts import PromptFormat
from tsi.experiments.tasks.published import BENCHMARKS, published_task
from tsi.experiments.tasks.task import Split, Task

__all__ = [
    "TASKS",
    "GeneratedTask",
    "PromptFormat",
    "Split",
    "Task",
    "get_generated_task",
    "get_task",
    "task_names",
]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (CHAIN, CHAIN_LONG, COUNTDOWN, COUNTDOWN_FOUR, CHAIN_SUM)
}
"""Tasks by name; add your own to use it on the command line of your script."""


def task_names() -> tuple[str, ...]:
    """The names of all tasks."""
    return (*TASKS, "champ", *BENCHMARKS, f"{PREFIX}NAME")


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownNameError: there is no such task; the message lists the known ones.
        ConfigurationError: a package that it needs is not installed.
        DownloadError: its problems cannot be fetched.
    """
    if name in TASKS:
        return TASKS[name]
    if name.startswith(PREFIX):
        return gym_task(name)
    if name == "champ":
        return champ_task()
    if name in BENCHMARKS:
        return published_task(name)
    raise UnknownNameError("task", name, task_names())


def get_generated_task(name: str) -> GeneratedTask:
    """The generated task of that name, with worked solutions and a verifier.

    Raises:
        UnknownNameError: there is no such task; the message lists the known ones.
    """
    task = TASKS.get(name)
    if not isinstance(task, GeneratedTask):
        generated = [k for k, v in TASKS.items() if isinstance(v, GeneratedTask)]
        raise UnknownNameError("generated task", name, generated)
    return task
