"""The commands that make rows and read them: `tsi scale`, `regrade` and `report`."""

import contextlib
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from tsi.errors import ConfigurationError
from tsi.experiments.command import exit_resumably
from tsi.experiments.commands.forecast_output import (
    forecast_share,
    print_notes,
    print_share_cost,
)
from tsi.experiments.model_options import (
    ContinueAnyway,
    Dry,
    DryRun,
    ModelOptions,
    Models,
    check_positive,
)
from tsi.experiments.problem_options import ProblemOptions, Problems
from tsi.models.files import check_writable


def scale(
    problems: Problems = ProblemOptions(),  # noqa: B008
    options: Models = ModelOptions(),  # noqa: B008
    methods: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="standard|all|NAME...")
    ] = ("standard",),
    budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
    num_problems: int | None = None,
    seeds: int = 1,
    temperatures: tuple[float, ...] = (),
    out: str | None = None,
    keep: Literal["all", "solutions", "none"] = "solutions",
    continue_anyway: ContinueAnyway = False,
    progress: bool = True,
    dry: Dry = DryRun(),  # noqa: B008
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> int:
    """Compare the accuracy of methods by budget, with error bars; can be resumed.

    Args:
        problems: a task or a file, prompt and grader.
        options: models.
        methods: methods to compare; standard: the nine methods of the published
            comparison; all: every method.
        budgets: rollouts N of each method.
        num_problems: by default 420 of a generated task, with standard errors below 2.5
            points, and all of a file or a published benchmark.
        seeds: how many times each problem is run.
        temperatures: policy temperatures at which every method runs; methods are then
            named as in smc@0.4. By default all methods run at --temperature.
        out: folder for rows, table and plots (default: results/TASK), or an address
            that fsspec supports, such as gs://bucket/folder.
        keep: what to keep in addition to rows, compressed: the texts, answers, weights
            and rewards of all particles (solutions); also each step, with its ancestors
            and rewards (all); or nothing.
        continue_anyway: see `ContinueAnyway`.
        progress: show a progress bar with the time left.
        dry: estimate the cost and run nothing.
        distributed: divide the problems among several processes, all started with this
            same command; TPU pods, Slurm and Open MPI are detected, and Kubernetes
            if jax[k8s] is installed.
        coordinator: if no cluster is detected, HOST:PORT of process 0, the same for all
            processes.
        num_processes: number of processes.
        process_id: index of this process, from 0.
    """
    from tsi.experiments.files.places import join_place, parse_place
    from tsi.experiments.plans.plan import make_plan
    from tsi.experiments.processes.distributed import group_of
    from tsi.experiments.reports.write_report import write_report
    from tsi.experiments.scaling.scale import run_plan
    from tsi.experiments.worlds.chosen_task import choose_task
    from tsi.experiments.worlds.embedded_world import device_mesh
    from tsi.models.partition import processes_of

    plan = make_plan(methods, budgets, seeds, temperatures)
    check_positive(num_problems=1 if num_problems is None else num_problems)
    dry.check(prints_forecast=True)
    folder = parse_place(out or f"results/{problems.name}")
    path = join_place(folder, "rows.jsonl")
    if isinstance(path, Path) and not dry.dry_run:
        # Check this before models are loaded, and not after it.
        check_writable(path)
    with (
        contextlib.nullcontext() if dry.dry_run else exit_resumably(),
        group_of(distributed, coordinator, num_processes, process_id) as group,
    ):
        if group.count > 1:
            # Processes that hold one model must know each other while it is loaded.
            group.hold_together(processes_of(device_mesh(options.model_parallel)))
        task = choose_task(problems)
        world = options.world(
            task, num_problems, shapes_only=not dry.needs_weights, split=problems.split
        )
        print_notes(world.notes if group.is_first else ())
        forecast = forecast_share(plan, world, path, group, keep, continue_anyway, dry)
        if dry.dry_run:
            return print_share_cost(forecast, group)
        print_notes([] if forecast is None else [forecast.line])
        try:
            rows = run_plan(
                plan,
                world,
                path,
                progress=progress,
                group=group,
                keep=keep,
                continue_anyway=continue_anyway,
            )
        finally:
            print_notes(world.ungraded_notes())
        if group.is_first:
            print(write_report(plan, world, rows, folder))
        group.gather("report")
    return 0


def regrade(
    run: Positional[str],
    grader: str | None = None,
    problems: Path | None = None,
    question_column: str = "question",
    answer_column: str = "answer",
    id_column: str = "id",
) -> int:
    """Extract and grade the answers of a finished run again, from its kept texts.

    The rows are replaced; the earlier ones are kept in rows.jsonl.before-regrade-N.

    Args:
        run: folder of the run, or its rows.jsonl.
        grader: name of another grader, or module:function, called with (Problem,
            answer), or task for the task's own; by default the one that the rows
            record.
        problems: your own file of problems with corrected answers; problems are matched
            by id, and questions must be those of the run.
        question_column: name of its column of questions.
        answer_column: name of its column of answers.
        id_column: name of its column of ids.
    """
    from tsi.experiments.rows.regrade_command import regrade_run
    from tsi.experiments.tasks.problem_file import Columns

    columns = Columns(question_column, answer_column, id_column)
    text, notes = regrade_run(run, grader, problems, columns)
    print(text)
    print_notes(notes)
    return 0


def report(
    runs: Positional[tuple[str, ...]] = (),
    out: Path | None = None,
    tables: bool = False,
    genealogies: int = 40,
    published: str | None = None,
) -> int:
    """Write finished runs as one HTML page, which can be read offline.

    Args:
        runs: output folders of `tsi scale`, with a file rows.jsonl.
        out: the page (default: report.html in the first run's folder).
        tables: also write the tables and figures into each folder again.
        genealogies: number of problems per run whose genealogies are shown; problems on
            which methods disagree come first. Texts must be kept (--keep all for single
            steps).
        published: draw the published curves of a policy of arXiv 2502.01618 in grey
            behind the run's curves: Llama-3.2-1B, Llama-3.1-8B, Qwen2.5-Math-1.5B or
            Qwen2.5-Math-7B. By default this is done for runs of these on math500.
    """
    from tsi.experiments.files.places import parse_place
    from tsi.experiments.pages.report_runs import report_runs

    if not runs:
        raise ConfigurationError(
            "tsi report needs a folder with rows.jsonl; run `tsi scale` first."
        )
    if genealogies < 0:
        raise ConfigurationError(f"genealogies must be 0 or more, not {genealogies}.")
    places = [parse_place(run.removesuffix("/rows.jsonl")) for run in runs]
    if out is None:
        first = places[0]
        out = (first if isinstance(first, Path) else Path()) / "report.html"
    paths = report_runs(
        places, out, tables=tables, genealogies=genealogies, published=published
    )
    print(paths)
    return 0
