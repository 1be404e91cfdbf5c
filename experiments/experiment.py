"""Experiments as Python values, and files of them: one file describes a study.

A file defines ``EXPERIMENTS``, a sequence of `Experiment`; each is one call of ``tsi
scale``. So one file can have several policies, rewards, temperatures and tasks:

    from tsi.experiments import Experiment, ModelOptions, ProblemOptions

    EXPERIMENTS = [
        Experiment(
            f"t{temperature}",
            ProblemOptions("countdown"),
            ModelOptions(temperature=temperature),
            methods=("particle_filter", "rebase"),
            budgets=(4, 16),
        )
        for temperature in (0.4, 1.0)
    ]

``tsi run FILE`` runs them one after the other, each in its own folder, and can be
resumed. It copies the file into the output folder and writes a table that compares
them.
"""

import contextlib
import math
import runpy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from tsi.errors import ConfigurationError, ResultsError, TsiError, UnknownNameError
from tsi.experiments.model_options import DryRun, ModelOptions
from tsi.experiments.plans.methods import get_method
from tsi.experiments.problem_options import ProblemOptions
from tsi.experiments.reports.curves import Curves, curves_of
from tsi.experiments.reports.report import markdown, percent
from tsi.experiments.rows.kept_particles import Keep
from tsi.experiments.rows.results import read_rows
from tsi.models.files import check_regular, describe_error, write_text

TABLE = "comparison.md"

Summary = Callable[[Mapping[str, Curves]], str]
"""From the curves of each experiment, by its name, to a text."""

Drawing = Callable[[Mapping[str, Curves], Path], list[Path]]
"""From these curves and a folder to the figures that it has drawn there."""


class Experiment(NamedTuple):
    """One call of ``tsi scale``.

    Attributes:
        name: of its folder; unique within a study.
        problems: a task or a file, prompt and grader.
        models: policy, reward and how they are used.
        methods: names of methods.
        budgets: rollouts N.
        num_problems: None for the usual number.
        seeds: how many times each problem is run.
        temperatures: of the policy, at each of which each method is run; if empty, all
            run at that of the models.
        keep: what is kept in addition to the rows: "solutions", "all" (each step
            too) or "none".
    """

    name: str
    problems: ProblemOptions = ProblemOptions()
    models: ModelOptions = ModelOptions()
    methods: tuple[str, ...] = ("standard",)
    budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    num_problems: int | None = None
    seeds: int = 1
    temperatures: tuple[float, ...] = ()
    keep: Keep = "solutions"


def read_experiments(path: Path) -> list[Experiment]:
    """The experiments of a Python file, which is run.

    Raises:
        ConfigurationError: the file cannot be run, or does not define EXPERIMENTS.
    """
    try:
        check_regular(path)
        experiments = runpy.run_path(str(path)).get("EXPERIMENTS")
    except OSError as error:
        raise ConfigurationError(describe_error(error, path)) from error
    except TsiError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        raise ConfigurationError(
            f"{path} could not be run: {type(error).__name__}: {error}."
        ) from error
    is_sequence = isinstance(experiments, Sequence) and not isinstance(experiments, str)
    if not is_sequence or not all(
        isinstance(x, Experiment) for x in experiments or [None]
    ):
        raise ConfigurationError(
            f"{path} does not define EXPERIMENTS, a list of "
            "tsi.experiments.Experiment; see `tsi run --help`."
        )
    return check_experiments(list(experiments or []))


def check_experiments(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Check types of fields and names of folders, and return the experiments.

    Raises:
        ConfigurationError: a field has a value of another type; or a name is empty, has
            a slash or occurs twice.
    """
    for experiment in experiments:
        _check_types(experiment, f"The experiment {experiment.name!r}", Experiment)
        for field in ("problems", "models"):
            options = getattr(experiment, field)
            place = f"The experiment {experiment.name!r}, {field}"
            _check_types(options, place, type(options))
    names = [experiment.name for experiment in experiments]
    for name in names:
        if not name or name in (".", "..") or "/" in name or names.count(name) > 1:
            raise ConfigurationError(
                f"The name {name!r} of an experiment is empty, has a slash or occurs "
                "twice; it is the name of the experiment's folder."
            )
    return list(experiments)


def change_models(
    experiments: Sequence[Experiment],
    only: Sequence[str] = (),
    served: str | None = None,
    reward: str | None = None,
) -> list[Experiment]:
    """Some experiments, with policies behind a server or with another reward.

    Args:
        experiments: of a study.
        only: names of those that are kept; all if empty.
        served: address of a server that has their policies; None changes nothing.
        reward: replaces theirs; None changes nothing.

    Raises:
        UnknownNameError: there is no experiment of a name.
        ConfigurationError: an experiment's policy is embedded, so no server has it.
    """
    names = [experiment.name for experiment in experiments]
    for name in only:
        if name not in names:
            raise UnknownNameError("experiment", name, names)
    changed = []
    for experiment in experiments:
        if only and experiment.name not in only:
            continue
        models = experiment.models
        if reward is not None:
            models = models._replace(reward=reward)
        if served is not None:
            if models.policy is None:
                raise ConfigurationError(
                    f"The experiment {experiment.name} has a policy that is a part of "
                    "this package, which no server has; leave --served out."
                )
            models = models._replace(
                policy=f"served:{served}#{models.policy}",
                served_tokenizer=models.policy,
            )
        changed.append(experiment._replace(models=models))
    return changed


def _check_types(values: Any, place: str, kind: type) -> None:
    """Refuse the fields of a NamedTuple whose values have another type than declared.

    Raises:
        ConfigurationError: names the first such field.
    """
    for field, declared in get_type_hints(kind).items():
        value = getattr(values, field)
        if not is_of_type(value, declared):
            written = getattr(declared, "__name__", None)
            raise ConfigurationError(
                f"{place}: {field} is {value!r:.80}, and must be of the type "
                f"{written if isinstance(declared, type) else declared}."
            )


def is_of_type(value: Any, declared: Any) -> bool:
    """Whether a value is of a declared type; an integer is a float, a bool is not.

    Args:
        value: of a field.
        declared: a class, a union, a literal or a tuple of these.
    """
    origin, arguments = get_origin(declared), get_args(declared)
    if origin is Annotated:
        return is_of_type(value, arguments[0])
    if origin in (Union, UnionType):
        return any(is_of_type(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        parts = arguments[:1] if arguments[1:] == (...,) else ()
        return isinstance(value, tuple | list) and all(
            is_of_type(item, part) for item in value for part in parts
        )
    kind = origin or declared
    if not isinstance(kind, type):
        return True
    if isinstance(value, bool):
        return kind is bool
    return (
        isinstance(value, int)
        if kind is float and isinstance(value, int)
        else (isinstance(value, kind))
    )


def run_experiments(
    experiments: Sequence[Experiment],
    folder: Path,
    scale: Callable[..., int],
    *,
    dry: DryRun = DryRun(),  # noqa: B008
    progress: bool = True,
    record: Path | None = None,
    summarise: Summary | None = None,
    draw: Drawing | None = None,
    continue_anyway: bool = False,
) -> int:
    """Run experiments one after the other, and compare them.

    Args:
        experiments: of a study.
        folder: for a folder per experiment and the comparison.
        scale: the command `tsi scale`.
        dry: estimate the costs and run nothing.
        progress: show progress bars.
        record: a file to copy into the folder.
        summarise: a text on the curves of all experiments, which follows the
            comparison.
        draw: figures of all experiments together.
        continue_anyway: continue rows of other versions or devices.

    Returns:
        The first exit code that is not 0, or 0.

    Raises:
        TsiError: an experiment is refused or fails.
    """
    if record is not None and not dry.dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        # A file that already is in the folder is its own record.
        with contextlib.suppress(shutil.SameFileError):
            shutil.copyfile(record, folder / record.name)
    code = 0
    for experiment in experiments:
        print(f"\n== {experiment.name}\n")
        exit_code = scale(
            experiment.problems,
            experiment.models,
            methods=experiment.methods,
            budgets=experiment.budgets,
            num_problems=experiment.num_problems,
            seeds=experiment.seeds,
            temperatures=experiment.temperatures,
            keep=experiment.keep,
            continue_anyway=continue_anyway,
            out=str(folder / experiment.name),
            dry=dry,
            progress=progress,
        )
        # One that is refused does not keep the others from being run.
        code = code or exit_code
    if not dry.dry_run:
        curves = read_curves(experiments, folder)
        parts = [comparison_table(curves)]
        if summarise is not None:
            parts.append(summarise(curves))
        text = "\n\n".join(parts)
        write_text(folder / TABLE, f"{text}\n")
        paths = [folder / TABLE, *(draw(curves, folder) if draw is not None else [])]
        print(f"\n{text}\n\nWritten: {', '.join(map(str, paths))}")
    return code


def read_curves(experiments: Sequence[Experiment], folder: Path) -> dict[str, Curves]:
    """The curves of each experiment, by its name.

    Raises:
        ResultsError: an experiment has not been run.
    """
    curves = {}
    for experiment in experiments:
        path = folder / experiment.name / "rows.jsonl"
        if not path.exists():
            raise ResultsError(f"There is no {path}; run the experiment first.")
        curves[experiment.name] = curves_of(read_rows(path))
    return curves


def comparison_table(studies: Mapping[str, Curves]) -> str:
    """Accuracy ± standard error in percent, by experiment, method and budget.

    Costs are the mean tokens per problem at the largest budget, of both models.
    """
    budgets = sorted(
        {n for curves in studies.values() for curve in curves.values() for n in curve}
    )
    lines = [["experiment", "method", *[f"N = {n}" for n in budgets], "tokens"]]
    for name, curves in studies.items():
        for method, curve in curves.items():
            cells = [percent(curve[n]) if n in curve else "" for n in budgets]
            last = curve[max(curve)]
            tokens = last.generated_tokens + last.reward_tokens
            cost = f"{tokens:,.0f}" if math.isfinite(tokens) else "-"
            lines.append([name, get_method(method).label, *cells, cost])
    return markdown(lines)
