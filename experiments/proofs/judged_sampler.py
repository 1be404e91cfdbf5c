"""`tsi check`: a sampler by the name of the function that makes it, and the verdict.

Whatever the name, the module or the function does wrong is a sentence with the place
where it happened; a sampler that breaks a promise of the contract is a verdict.
"""

import importlib
import inspect
import operator
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsi.bench import conformance
from tsi.bench.conformance import MAX_Z, MIN_P, Report
from tsi.bench.source_lines import PARTS, relative_path
from tsi.errors import ConfigurationError, TsiError
from tsi.explorer import Explorer
from tsi.sampler import Sampler

WRITE = "write module:function, as in my_module:make_sampler"


def report_on(name: str, num_particles: int, num_runs: int) -> Report:
    """Judge the sampler that a function of this name makes.

    Args:
        name: "module:function"; the function may lie deeper, as in module:Class.make.
        num_particles: N, a number that the sampler can use.
        num_runs: runs on each target.

    Raises:
        ConfigurationError: the name leads to no function, or the function makes no
            sampler that can be run.
    """
    sampler = make_sampler(name)
    try:
        return conformance.check_sampler(
            lambda: sampler, num_particles=num_particles, num_runs=num_runs
        )
    except TsiError:
        raise
    except Exception as error:
        # An error in the sampler's own lines would be a broken promise: here it takes
        # or returns something else than a sampler does.
        raise ConfigurationError(
            f"{name!r} made a sampler that cannot be judged: {_told(error)}; compare "
            "what its functions take and return with tsi.Sampler or tsi.Explorer."
        ) from error


def make_sampler(name: str) -> Sampler | Explorer:
    """Import a function by its name and call it.

    Args:
        name: "module:function".

    Raises:
        ConfigurationError: there is no such function, or it returns no sampler.
    """
    function = function_named(name)
    _check_needs_no_arguments(name, function)
    try:
        sampler = function()
    except (TsiError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Also SystemExit, and the panics of extensions in Rust.
        raise ConfigurationError(
            f"{name!r} made no sampler but raised {_told(error)}."
        ) from error
    if not isinstance(sampler, Sampler | Explorer):
        raise ConfigurationError(
            f"What {name!r} returned is {_kind(sampler)}; return a tsi.Sampler or a "
            "tsi.Explorer."
        )
    functions = [*PARTS]
    if isinstance(sampler, Explorer):
        functions.append("plan")
    if sampler.path_log_weight is not None:
        functions.append("path_log_weight")
    for part in functions:
        value = getattr(sampler, part)
        if not callable(value):
            raise ConfigurationError(
                f"{name!r} returned a sampler whose {part} is {_kind(value)}; it must "
                "be a function."
            )
    return sampler


def function_named(name: str) -> Callable[[], Any]:
    """What a name "module:function" leads to, if one can call it.

    Raises:
        ConfigurationError: it leads nowhere, or to something else.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path or ":" in path:
        raise ConfigurationError(f"{name!r} names no function; {WRITE}.")
    is_name = all(part.isidentifier() for part in module_name.split("."))
    if not is_name or module_name.endswith(".py"):
        raise ConfigurationError(
            f"{module_name!r} is not the name of a module{_as_module(module_name)}; "
            f"{WRITE}."
        )
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"There is no module {module_name}; {WRITE}, and start in the folder "
                "that holds the module, or install it."
            ) from error
        raise _not_imported(module_name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _not_imported(module_name, error) from error
    try:
        found = operator.attrgetter(path)(found)
    except Exception as error:
        raise ConfigurationError(f"{module_name} has no {path!r}; {WRITE}.") from error
    if not callable(found):
        raise ConfigurationError(
            f"{name!r} is {_kind(found)}, not a function that returns a sampler; "
            f"{WRITE}."
        )
    return found


def verdict(report: Report, num_particles: int, num_runs: int) -> str:
    """The last line: whether the sampler passed, and by which thresholds.

    Args:
        report: what `check_sampler` found.
        num_particles: N of the runs.
        num_runs: on each target.
    """
    judged = [check for check in report.checks if check.passed is not None]
    broken = [check.promise for check in report.failures]
    skipped = len(report.checks) - len(judged)
    head = (
        f"FAILED: breaks {len(broken)} of {len(judged)} promises ({'; '.join(broken)})"
        if broken
        else f"PASSED: keeps all {len(judged)} promises"
    )
    head += f", {skipped} skipped" if skipped else ""
    exact = any(check.promise.startswith(("evidence", "posterior")) for check in judged)
    unseen = "" if exact else " It claims no target, so its exactness was not judged."
    return (
        f"{head}. Thresholds: evidence |z| < {MAX_Z:g}, posterior p > {MIN_P:g}; "
        f"N = {num_particles}, {num_runs:,} runs on each target.{unseen}"
    )


def _check_needs_no_arguments(name: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        # Functions of C may not tell; they are called and say so themselves.
        return
    needed = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigurationError(
            f"{name!r} needs arguments ({', '.join(needed)}); write a function without "
            "any, which calls it."
        )


def _not_imported(module: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"{module} cannot be imported: {_told(error)}.")


def _as_module(name: str) -> str:
    """For a path, the name that its module probably has."""
    return f" but a path; its module may be {Path(name).stem}" if ".py" in name else ""


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _told(error: BaseException) -> str:
    """An error's type and words on one line, and where somebody's file raised it."""
    words = " ".join(str(error).split())
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    if isinstance(error, SyntaxError):
        # Its words tell the place.
        return text
    places = [
        f"{relative_path(frame.filename)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__)
        and not frame.filename.startswith("<")
        and "site-packages" not in frame.filename
    ]
    return f"{text} (at {places[-1]})" if places else text
