"""A user's function by its name, "module:function".

An error of the name, the module or the function is a sentence with the place where it
happened.
"""

import importlib
import operator
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsi.errors import ConfigurationError


def find_function(name: str, purpose: str, example: str) -> Callable[..., Any]:
    """Import the function with the name "module:function".

    Modules of the working folder are found first, as with ``python -m``.

    Args:
        name: "module:function"; the function may be an attribute, as in
            module:Class.make.
        purpose: what the function is for, such as "a function that returns a sampler".
        example: a name of such a function.

    Raises:
        ConfigurationError: if there is no such function.
    """
    write = f"write module:function, as in {example}"
    module_name, _, path = name.partition(":")
    if not module_name or not path or ":" in path:
        raise ConfigurationError(f"{name!r} is not the name of a function; {write}.")
    is_name = all(part.isidentifier() for part in module_name.split("."))
    if not is_name or module_name.endswith(".py"):
        raise ConfigurationError(
            f"{module_name!r} is not the name of a "
            f"module{_suggest_module(module_name)}; {write}."
        )
    folder = os.getcwd()
    if "" not in sys.path and folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        function = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"There is no module {module_name}; {write}, and start in the folder "
                "that holds the module, or install it."
            ) from error
        raise _import_error(module_name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Includes SystemExit, and panics of Rust extensions.
        raise _import_error(module_name, error) from error
    try:
        function = operator.attrgetter(path)(function)
    except Exception as error:
        raise ConfigurationError(f"{module_name} has no {path!r}; {write}.") from error
    if not callable(function):
        raise ConfigurationError(
            f"{name!r} is {describe_kind(function)}, not {purpose}; {write}."
        )
    return function


def describe_kind(value: Any) -> str:
    """What a value is, for a sentence."""
    return "None" if value is None else f"of type {type(value).__name__}"


def describe_error(error: BaseException, caller: str = "") -> str:
    """Type and message of an error on one line, and the place in the user's file.

    Args:
        error: raised by the user's code.
        caller: the file that called this code; its lines are not the place.
    """
    message = " ".join(str(error).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):
        # The message has the place.
        return text
    places = [
        f"{_relative_path(frame.filename)}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__, caller)
        and not frame.filename.startswith("<")
        and "site-packages" not in frame.filename
    ]
    return f"{text} (at {places[-1]})" if places else text


def _relative_path(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _import_error(module: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"{module} cannot be imported: {describe_error(error)}.")


def _suggest_module(name: str) -> str:
    """For a path, suggest the probable name of the module."""
    return f" but a path; its module may be {Path(name).stem}" if ".py" in name else ""
