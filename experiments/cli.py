"""The command line: `tsi scale`, `regrade`, `report`, `solve`, `models` and others.

Heavy modules are imported only when a command needs them, so that `--help` is quick.
`command.py` describes how commands end and their exit codes.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from tsi.errors import ConfigurationError, UnknownNameError
from tsi.experiments.command import REFUSED, exit_code, resumable
from tsi.experiments.model_options import (
    Dry,
    DryRun,
    ModelOptions,
    Models,
    check_positive,
)
from tsi.experiments.problem_options import ProblemOptions, Problems
from tsi.models.files import check_writable

if TYPE_CHECKING:
    from tsi.experiments.places import Place
    from tsi.experiments.scaling.dry_run import Forecast
    from tsi.experiments.scaling.plan import Plan
    from tsi.experiments.scaling.process_group import Group
    from tsi.experiments.tasks.task import Task
    from tsi.experiments.worlds.world import World
    from tsi.models.loading.catalogue import Description
    from tsi.problem import Problem


def scale(
    problems: Problems = ProblemOptions(),  # noqa: B008
    options: Models = ModelOptions(),  # noqa: B008
    methods: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="standard|all|NAME...")
    ] = ("standard",),
    budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
    num_problems: int | None = None,
    seeds: int = 1,
    out: str | None = None,
    keep: Literal["all", "solutions", "none"] = "solutions",
    continue_anyway: bool = False,
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
        methods: which to compare; standard: the nine methods of the published
            comparison; all: every method.
        budgets: rollouts N of each method.
        num_problems: by default 420 of a generated task, with standard errors below 2.5
            points, and all of a file or a published benchmark.
        seeds: how many times each problem is run.
        out: folder for rows, table and plots (default: results/TASK), or an address
            that fsspec supports, such as gs://bucket/folder.
        keep: what to keep beside the rows, compressed: the texts, answers, weights and
            rewards of all particles (solutions); also each step, with its ancestors and
            rewards (all); or nothing.
        continue_anyway: continue rows that were made with other versions of JAX or tsi,
            or on another kind of device; every row records its own.
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
    from tsi.experiments.places import join_place, parse_place
    from tsi.experiments.scaling.distributed import group_of
    from tsi.experiments.scaling.plan import make_plan
    from tsi.experiments.scaling.scale import run_plan
    from tsi.experiments.scaling.write_report import write_report
    from tsi.experiments.worlds.chosen_task import choose_task

    plan = make_plan(methods, budgets, seeds)
    check_positive(num_problems=1 if num_problems is None else num_problems)
    dry.check()
    folder = parse_place(out or f"results/{problems.name}")
    path = join_place(folder, "rows.jsonl")
    if isinstance(path, Path) and not dry.dry_run:
        # Check this before models are loaded, and not after it.
        check_writable(path)
    with (
        contextlib.nullcontext() if dry.dry_run else resumable(),
        group_of(distributed, coordinator, num_processes, process_id) as group,
    ):
        task = choose_task(problems)
        world = options.world(
            task, num_problems, shapes_only=dry.dry_run, split=problems.split
        )
        _print_notes(world.notes if group.is_first else ())
        forecast = _forecast_share(plan, world, path, group, continue_anyway, dry)
        if dry.dry_run:
            return _print_share_cost(forecast, group)
        _print_notes([] if forecast is None else [forecast.line])
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
            _print_notes(world.ungraded_notes())
        if group.is_first:
            print(write_report(plan, world, rows, folder))
        group.gather("report")
    return 0


def regrade(run: Positional[str], grader: str | None = None) -> int:
    """Extract and grade the answers of a finished run again, from its kept texts.

    The rows are replaced, and the earlier ones are kept beside them.

    Args:
        run: folder of the run, or its rows.jsonl.
        grader: name of another grader, or module:function, called with (Problem,
            answer); by default the one that the rows record.
    """
    from tsi.experiments.scaling.regrade_command import regrade_run

    text, notes = regrade_run(run, grader)
    print(text)
    _print_notes(notes)
    return 0


def report(
    runs: Positional[tuple[str, ...]] = (),
    out: Path | None = None,
    tables: bool = False,
    genealogies: int = 40,
) -> int:
    """Write finished runs as one HTML page, which needs no network to be read.

    Args:
        runs: folders with a file rows.jsonl, as `tsi scale` writes them.
        out: the page (default: report.html in the first run's folder).
        tables: also write the tables and figures into each folder again.
        genealogies: problems of each run whose genealogies are shown, if texts were
            kept (with --keep all step by step), those on which methods disagree first.
    """
    from tsi.experiments.pages.report_runs import report_runs
    from tsi.experiments.places import parse_place

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
    print(report_runs(places, out, tables=tables, genealogies=genealogies))
    return 0


def solve(
    prompt: Positional[str],
    problems: Problems = ProblemOptions(),  # noqa: B008
    options: Models = ModelOptions(),  # noqa: B008
    method: str = "smc",
    budget: int = 16,
    seed: int = 0,
    figures: Path | None = None,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Solve one problem and show each step's ESS, the genealogy and the answers.

    Args:
        prompt: the problem, for example "7*8+5-9"; with --policy and without --task,
            any question; with --problems or a published benchmark, the id of a problem
            or any question.
        problems: a task or a file, prompt and grader.
        options: models.
        method: name of the sampler.
        budget: rollouts N.
        seed: seed of the random numbers.
        figures: folder for plots of the genealogy, of effective sample size and rewards
            per step, and of the weights; none are drawn by default.
        dry: estimate the cost and run nothing.
    """
    import jax

    from tsi.experiments.scaling.methods import get_method
    from tsi.experiments.scaling.run_method import run_method
    from tsi.experiments.solving.solve import solution_text
    from tsi.experiments.worlds.chosen_task import choose_problem

    entry = get_method(method)
    check_positive(budget=budget)
    dry.check()
    has_policy = options.policy is not None
    task, problem = choose_problem(problems, prompt, has_policy=has_policy)
    if dry.dry_run:
        return _print_cost(task, options, dry, method, budget, [problem])
    if figures is not None:
        # Check this before the run, and not after it.
        check_writable(figures / "ess.png")
    world = options.world(task, [problem])
    _print_notes(world.notes)
    (result,) = run_method(world, method, jax.random.key(seed), [problem], budget)
    print(f"{problem.prompt}   {entry.label}, N = {budget}, seed {seed}\n")
    print(solution_text(result))
    if problem.answer:
        is_right = world.is_correct(problem, result.selected)
        verdict = "solved" if is_right else "not solved"
        print(f"\nRight answer: {problem.answer} ({verdict})")
        _print_notes(world.ungraded_notes())
    if figures is not None:
        from tsi.experiments.solving.diagnostics import save_figures

        paths = save_figures(result, figures)
        print(f"Figures: {', '.join(map(str, paths))}")
    return 0


def profile(
    problems: Problems = ProblemOptions(),  # noqa: B008
    options: Models = ModelOptions(),  # noqa: B008
    method: str = "smc",
    budget: int = 16,
    num_problems: int = 8,
    seed: int = 0,
    trace: Path | None = None,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Run a method on a few problems and show where its time and memory go.

    The host waits for every program, so that the times of the parts do not overlap; an
    ordinary run is a little faster. The second run reads compiled programs from disk,
    and so shows the time without compilation.

    Args:
        problems: a task or a file, prompt and grader.
        options: models.
        method: name of the sampler.
        budget: rollouts N.
        num_problems: number of problems.
        seed: seed of the random numbers.
        trace: folder for a trace of jax.profiler, for TensorBoard or Perfetto.
        dry: estimate the cost and run nothing.
    """
    from tsi.experiments.scaling.methods import get_method
    from tsi.experiments.scaling.profiling import profile_run, table_of
    from tsi.experiments.worlds.chosen_task import choose_task

    entry = get_method(method)
    check_positive(budget=budget, num_problems=num_problems)
    dry.check()
    task = choose_task(problems)
    if dry.dry_run:
        return _print_cost(task, options, dry, method, budget, num_problems)
    if trace is not None:
        check_writable(trace / "trace")
    world = options.world(task, num_problems, split=problems.split)
    _print_notes(world.notes)
    report = profile_run(world, method, budget, seed, trace)
    print(f"{entry.label}, N = {budget}, {num_problems} problems, seed {seed}\n")
    print(table_of(report))
    return 0


def _print_cost(
    task: "Task",
    options: ModelOptions,
    dry: DryRun,
    method: str,
    budget: int,
    problems: "int | list[Problem]",
) -> int:
    """Print what one run would cost."""
    from tsi.experiments.scaling.dry_run import Run, forecast

    world = options.world(task, problems, shapes_only=True)
    _print_notes(world.notes)
    run = Run(method, budget, len(world.problems))
    return _print_forecast(forecast(world, [run], dry.flops_per_second))


def _forecast_share(
    plan: "Plan",
    world: "World",
    path: "Place",
    group: "Group",
    continue_anyway: bool,
    dry: DryRun,
) -> "Forecast | None":
    """The cost of the first process's share, which is the largest; None in others."""
    from tsi.experiments.scaling.dry_run import forecast, runs_of
    from tsi.experiments.scaling.plan import sort_problems
    from tsi.experiments.scaling.scale import facts_of

    group.agree(facts_of(plan, world, path))
    if not group.is_first:
        return None
    world = world._replace(problems=group.share(sort_problems(world.problems)))
    runs = runs_of(plan, world, path, continue_anyway=continue_anyway)
    return forecast(world, runs, dry.flops_per_second, processes=group.count)


def _print_share_cost(forecast: "Forecast | None", group: "Group") -> int:
    """Print the forecast of the first process, and return the exit code of all."""
    code = 0 if forecast is None else _print_forecast(forecast)
    return int(group.gather("forecast", str(code))[0])


def _print_forecast(forecast: "Forecast") -> int:
    """Print a forecast and return the exit code that the command would have."""
    print(forecast.text)
    return REFUSED if forecast.is_refused else 0


def models(
    action: Positional[str] = "list", name: Positional[str | None] = None
) -> int:
    """List families and named models, or download one: `tsi models get NAME_OR_ID`.

    Args:
        action: list or get.
        name: name of the model to download, or its id on the Hugging Face hub.
    """
    from tsi.models.loading import catalogue, download

    if action == "list":
        print(_list_models(catalogue.describe()))
    elif action == "get":
        if name is None:
            raise UnknownNameError("model", "", catalogue.MODELS)
        print(download.get(name))
    else:
        raise UnknownNameError("models action", action, ("list", "get"))
    return 0


def _list_models(models: "list[Description]") -> str:
    """The named models of each family, with their sizes and paths."""
    from tsi.models.families.architectures import FAMILIES

    lines = []
    for family in FAMILIES:
        lines.append(f"{family}:")
        for name, model, path in models:
            if model.family == family:
                size = model.weights
                text = f"{size / 1000:.1f} B" if size >= 1000 else f"{size:g} M"
                lines.append(f"  {name:19} {text:>7}  {model.about}")
                where = path or f"not downloaded yet: tsi models get {name}"
                lines.append(f"  {'':28} {where}")
    lines.append(
        "Other models of these families: their hub id (organisation/name), a folder "
        "or a .gguf file."
    )
    return "\n".join(lines)


def paper() -> int:
    """Scaling rates of the curves of arXiv 2502.01618, figure 2 (MATH500)."""
    from tsi.experiments.scaling.paper_curves import paper_curves, paper_scaling_rate
    from tsi.experiments.scaling.report import markdown

    lines = [["model", "against", "mean", "least", "most", "top", "accuracies %"]]
    for model in paper_curves():
        for against in ("DVTS", "WBoN"):
            rate = paper_scaling_rate(model, "PF", against)
            ends = 100 * rate.accuracies[[0, -1]]
            numbers = (rate.mean, rate.rates.min(), rate.rates.max(), rate.top)
            lines.append(
                [
                    model,
                    against,
                    *[f"{float(number):.1f}" for number in numbers],
                    f"{ends[0]:.1f} to {ends[1]:.1f}",
                ]
            )
    print(
        "Budget that each method needs, divided by the particle filter's, for equal "
        "accuracy (running maxima over budgets):"
    )
    print(markdown(lines))
    return 0


def check(
    make_sampler: Positional[str], num_particles: int = 8, num_runs: int = 20_000
) -> int:
    """Run the conformance checks on a sampler; exit code 1 if it fails.

    Args:
        make_sampler: "module:function"; the function returns a sampler.
        num_particles: N, a number that the sampler supports.
        num_runs: runs on each target; 20,000 detect a bias of about 2 %.
    """
    from tsi.experiments.proofs.named_sampler import report_on, verdict

    check_positive(num_particles=num_particles, num_runs=num_runs)
    report = report_on(make_sampler, num_particles, num_runs)
    print(f"{report}\n\n{verdict(report, num_particles, num_runs)}")
    return 0 if report.passed else 1


def run(
    file: Positional[Path],
    out: Path | None = None,
    progress: bool = True,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Run the experiments of a Python file, which defines EXPERIMENTS; can be resumed.

    Args:
        file: see the module tsi.experiments.experiment.
        out: folder for a folder per experiment, a table that compares them and a copy
            of the file (default: results/NAME).
        progress: show progress bars with the time left.
        dry: estimate the costs and run nothing.
    """
    from tsi.experiments.experiment import read_experiments, run_experiments

    experiments = read_experiments(file)
    folder = out or Path("results") / file.stem
    return run_experiments(
        experiments, folder, scale, dry=dry, progress=progress, record=file
    )


def reproduce(
    name: Positional[str] = "list",
    small: bool = False,
    out: Path | None = None,
    progress: bool = True,
    dry: Dry = DryRun(),  # noqa: B008
) -> int:
    """Test a published claim: `tsi reproduce list` names them; can be resumed.

    Args:
        name: of the claim.
        small: with embedded models, in minutes on two cores.
        out: folder (default: results/reproductions/NAME, or NAME-small).
        progress: show progress bars with the time left.
        dry: estimate the costs and run nothing.
    """
    from tsi.experiments.experiment import run_experiments
    from tsi.experiments.reproductions import NAMES, get_reproduction

    if name == "list":
        for known in NAMES:
            print(f"{known:22} {get_reproduction(known).claim.splitlines()[0]}")
        return 0
    found = get_reproduction(name)
    print(found.claim)
    folder = out or Path("results/reproductions") / f"{name}{'-small' * small}"
    experiments = found.small if small else found.full
    return run_experiments(
        experiments,
        folder,
        scale,
        dry=dry,
        progress=progress,
        summarize=found.summarize if small else None,
    )


COMMANDS: dict[str, Callable[..., Any]] = {
    "scale": scale,
    "regrade": regrade,
    "report": report,
    "solve": solve,
    "run": run,
    "reproduce": reproduce,
    "profile": profile,
    "models": models,
    "paper": paper,
    "check": check,
}


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"tsi: {note}", file=sys.stderr)


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
