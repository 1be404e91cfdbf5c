"""The command line: `tsi scale`, `regrade`, `report`, `solve`, `models` and others.

Each command is a function of a module ``*_commands``. Heavy modules are imported only
when a command needs them, so that `--help` is quick. `command.py` describes how
commands end and their exit codes.
"""

from collections.abc import Callable
from typing import Any

import tyro

from tsi.experiments.command import exit_code
from tsi.experiments.commands.reference_commands import check, models, paper
from tsi.experiments.commands.scale_commands import regrade, report, scale
from tsi.experiments.commands.serve_commands import serve
from tsi.experiments.commands.server_command import server
from tsi.experiments.commands.solve_commands import profile, solve
from tsi.experiments.commands.study_commands import reproduce, run

COMMANDS: dict[str, Callable[..., Any]] = {
    "scale": scale,
    "regrade": regrade,
    "report": report,
    "solve": solve,
    "serve": serve,
    "run": run,
    "reproduce": reproduce,
    "profile": profile,
    "models": models,
    "server": server,
    "paper": paper,
    "check": check,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code; see `exit_code`."""
    return exit_code(
        lambda: tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="tsi",
            description="Probabilistic inference-time scaling.",
            args=arguments,
        )
    )
