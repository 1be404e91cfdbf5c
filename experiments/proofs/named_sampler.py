"""`tsi check`: check the sampler that a named function makes.

An error of the name, the module or the function is reported as a sentence with the
place where it happened. A sampler that breaks a promise of the contract fails the
check.
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
    """Check the sampler that a function of this name makes.

    Args:
        name: "module:function"; the function may be an attribute, as in
            module:Class.make.
        num_particles: N; the sampler must accept it.
        num_runs: number of runs per target.

    Raises:
        ConfigurationError: if there is no such function, or the function makes no
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
        # An error in the sampler's own code is a broken promise. An error here means
        # that its functions do not have the signature of a sampler's.
        raise ConfigurationError(
            f"{name!r} made a sampler that cannot be checked: "
            f"{_describe_error(error)}. Compare the arguments and results of its "
            "functions with tsi.Sampler or tsi.Explorer."
        ) from error


def make_sampler(name: str) -> Sampler | Explorer:
    """Import a function by its name and call it.

    Args:
        name: "module:function".

    Raises:
        ConfigurationError: if there is no such function, or it returns no sampler.
    """
    function = find_function(name)
    _check_needs_no_arguments(name, function)
    try:
        sampler = function()
    except (TsiError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Includes SystemExit, and panics of Rust extensions.
        raise ConfigurationError(
            f"{name!r} did not make a sampler; it raised {_describe_error(error)}."
        ) from error
    if not isinstance(sampler, Sampler | Explorer):
        raise ConfigurationError(
            f"The value that {name!r} returned is {_describe_kind(sampler)}; return a "
            "tsi.Sampler or a tsi.Explorer."
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
                f"{name!r} returned a sampler whose {part} is {_describe_kind(value)}; "
                "it must be a function."
            )
    return sampler


def find_function(name: str) -> Callable[[], Any]:
    """Import the function with the name "module:function".

    Raises:
        ConfigurationError: if there is no such function.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path or ":" in path:
        raise ConfigurationError(f"{name!r} is not the name of a function; {WRITE}.")
    is_name = all(part.isidentifier() for part in module_name.split("."))
    if not is_name or module_name.endswith(".py"):
        raise ConfigurationError(
            f"{module_name!r} is not the name of a "
            f"module{_suggest_module(module_name)}; {WRITE}."
        )
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"There is no module {module_name}; {WRITE}, and start in the folder "
                "that holds the module, or install it."
            ) from error
        raise _import_error(module_name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _import_error(module_name, error) from error
    try:
        found = operator.attrgetter(path)(found)
    except Exception as error:
        raise ConfigurationError(f"{module_name} has no {path!r}; {WRITE}.") from error
    if not callable(found):
        raise ConfigurationError(
            f"{name!r} is {_describe_kind(found)}, not a function that returns a "
            f"sampler; {WRITE}."
        )
    return found


def verdict(report: Report, num_particles: int, num_runs: int) -> str:
    """The last line of a report: whether the sampler passed, and the thresholds.

    Args:
        report: the result of `check_sampler`.
        num_particles: N of the runs.
        num_runs: number of runs per target.
    """
    checked = [check for check in report.checks if check.passed is not None]
    broken = [check.promise for check in report.failures]
    skipped = len(report.checks) - len(checked)
    summary = (
        f"FAILED: breaks {len(broken)} of {len(checked)} promises ({'; '.join(broken)})"
        if broken
        else f"PASSED: keeps all {len(checked)} promises"
    )
    summary += f", {skipped} skipped" if skipped else ""
    has_target = any(
        check.promise.startswith(("evidence", "posterior")) for check in checked
    )
    note = (
        "" if has_target else " It states no target, so its exactness was not checked."
    )
    return (
        f"{summary}. Thresholds: evidence |z| < {MAX_Z:g}, posterior p > {MIN_P:g}; "
        f"N = {num_particles}, {num_runs:,} runs on each target.{note}"
    )


def _check_needs_no_arguments(name: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        # C functions may have no signature; the call itself then reports the error.
        return
    required = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise ConfigurationError(
            f"{name!r} needs arguments ({', '.join(required)}); write a function "
            "without arguments that calls it."
        )


def _import_error(module: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"{module} cannot be imported: {_describe_error(error)}.")


def _suggest_module(name: str) -> str:
    """For a path, suggest the probable name of the module."""
    return f" but a path; its module may be {Path(name).stem}" if ".py" in name else ""


def _describe_kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _describe_error(error: BaseException) -> str:
    """Type and message of an error on one line, and the place in the user's file."""
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):
        # The message has the place.
        return text
    places = [
        f"{relative_path(frame.filename)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__)
        and not frame.filename.startswith("<")
        and "site-packages" not in frame.filename
    ]
    return f"{text} (at {places[-1]})" if places else text
