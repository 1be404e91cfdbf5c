"""What commands print before a run: notes on the policy, and what the run will cost."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsi.errors import ProblemError
from tsi.experiments.command import REFUSED
from tsi.experiments.model_options import DryRun, ModelOptions

if TYPE_CHECKING:
    from tsi.experiments.files.places import Place
    from tsi.experiments.forecasts.dry_run import Forecast, Run
    from tsi.experiments.plans.plan import ExperimentPlan
    from tsi.experiments.processes.process_group import Group
    from tsi.experiments.rows.kept_particles import Keep
    from tsi.experiments.tasks.task import Task
    from tsi.experiments.worlds.world import World
    from tsi.problem import Problem


def print_notes(notes: Sequence[str]) -> None:
    """Print notes for the user on standard error, one per line."""
    for note in notes:
        print(f"tsi: {note}", file=sys.stderr)


def print_cost(
    task: "Task",
    options: ModelOptions,
    dry: DryRun,
    method: str,
    budget: int,
    problems: "int | list[Problem]",
) -> int:
    """Print what one run would cost."""
    from tsi.experiments.forecasts.dry_run import Run

    world = options.world(task, problems, shapes_only=not dry.needs_weights)
    print_notes(world.notes)
    run = Run(method, budget, len(world.problems))
    return print_forecast(forecast_runs(world, [run], dry))


def forecast_runs(
    world: "World", runs: "Sequence[Run]", dry: DryRun, *, processes: int = 1
) -> "Forecast":
    """What runs would cost, after a pilot if there is to be one."""
    from tsi.experiments.forecasts.dry_run import forecast
    from tsi.experiments.forecasts.pilot import default_num_problems, measure_length

    rollouts, pilot_problems = sum(run.budget * run.problems for run in runs), dry.pilot
    if pilot_problems is None:
        pilot_problems = 0 if dry.dry_run else default_num_problems(world, rollouts)
    note = ""
    if pilot_problems and rollouts:
        try:
            world, pilot = measure_length(world, pilot_problems)
            note = f"{pilot} "
        except ProblemError as error:
            # Other problems may succeed, and the run itself says which do not.
            note = f"The pilot found no length of a solution: {error} "
    return forecast(world, runs, dry.flops_per_second, processes=processes, note=note)


def forecast_share(
    plan: "ExperimentPlan",
    world: "World",
    path: "Place",
    group: "Group",
    keep: "Keep",
    continue_anyway: bool,
    dry: DryRun,
) -> "Forecast | None":
    """The cost of the first process's share, which is the largest; None in others."""
    from tsi.experiments.forecasts.dry_run import runs_of
    from tsi.experiments.plans.plan import sort_problems
    from tsi.experiments.scaling.scale import facts_of
    from tsi.models.partition import processes_of

    size = processes_of(world.engine.mesh)
    group.hold_together(size)
    group.agree(facts_of(plan, world, path, keep, continue_anyway))
    # The processes of the first model make its pilot together.
    if group.index >= size:
        return None
    world = world._replace(problems=group.share(sort_problems(world.problems)))
    runs = runs_of(plan, world, path, continue_anyway=continue_anyway)
    found = forecast_runs(world, runs, dry, processes=group.count // size)
    return found if group.is_first else None


def print_share_cost(forecast: "Forecast | None", group: "Group") -> int:
    """Print the forecast of the first process, and return the exit code of all."""
    code = 0 if forecast is None else print_forecast(forecast)
    return int(group.gather("forecast", str(code))[0])


def print_forecast(forecast: "Forecast") -> int:
    """Print a forecast and return the exit code that the command would have."""
    print(forecast.text)
    return REFUSED if forecast.is_refused else 0
