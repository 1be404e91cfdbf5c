"""`tsi check`: check the sampler that a named function makes.

An error of the name, the module or the function is reported as a sentence with the
place where it happened. A sampler that breaks a promise of the contract fails the
check.
"""

import inspect
from collections.abc import Callable
from typing import Any

from tsi.bench import conformance
from tsi.bench.conformance import MAX_Z, MIN_P, Report
from tsi.bench.source_lines import PARTS
from tsi.errors import ConfigurationError, TsiError
from tsi.experiments.named_function import describe_error, describe_kind, find_function
from tsi.explorer import Explorer
from tsi.sampler import Sampler

PURPOSE, EXAMPLE = "a function that returns a sampler", "my_module:make_sampler"


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
            f"{describe_error(error, __file__)}. Compare the arguments and results of "
            "its functions with tsi.Sampler or tsi.Explorer."
        ) from error


def make_sampler(name: str) -> Sampler | Explorer:
    """Import a function by its name and call it.

    Args:
        name: "module:function".

    Raises:
        ConfigurationError: if there is no such function, or it returns no sampler.
    """
    function = find_function(name, PURPOSE, EXAMPLE)
    _check_needs_no_arguments(name, function)
    try:
        sampler = function()
    except (TsiError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # Includes SystemExit, and panics of Rust extensions.
        raise ConfigurationError(
            f"{name!r} did not make a sampler; it raised "
            f"{describe_error(error, __file__)}."
        ) from error
    if not isinstance(sampler, Sampler | Explorer):
        raise ConfigurationError(
            f"The value that {name!r} returned is {describe_kind(sampler)}; return a "
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
                f"{name!r} returned a sampler whose {part} is {describe_kind(value)}; "
                "it must be a function."
            )
    return sampler


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
