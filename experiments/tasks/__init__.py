"""Generated tasks with exact verifiers, by name: ``get_task("chain")``."""

from tsi.errors import UnknownNameError
from tsi.experiments.tasks.chain import CHAIN
from tsi.experiments.tasks.countdown import COUNTDOWN
from tsi.experiments.tasks.task import Split, Task

__all__ = ["TASKS", "Split", "Task", "get_task"]

TASKS = {task.name: task for task in (CHAIN, COUNTDOWN)}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownNameError: there is no such task; the message lists the known ones.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return TASKS[name]
