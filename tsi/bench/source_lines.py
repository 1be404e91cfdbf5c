"""File and line of a sampler's functions, for reports.

Wrappers of `functools.wraps`, `jax.jit` and `functools.partial` are removed, so that
the line is that of the original function.
"""

import functools
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

from tsi.explorer import Explorer
from tsi.sampler import Sampler

PARTS = ("init", "ask", "tell")


def code_of(function: Callable[..., Any]) -> CodeType | None:
    """The code object of a callable; None if it is not written in Python."""
    while True:
        inner = inspect.unwrap(function)
        if isinstance(inner, functools.partial):
            inner = inner.func
        if inner is function:
            break
        function = inner
    code = getattr(function, "__code__", None)
    if code is None:
        # An instance that can be called; a bound method has its function's code.
        code = getattr(type(function).__call__, "__code__", None)
    return code


def relative_path(filename: str) -> str:
    """A path relative to the current folder, if the file lies in it."""
    path = Path(filename).resolve()
    folder = Path.cwd()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def places_of_functions(sampler: Sampler | Explorer, *parts: str) -> str:
    """Files and lines of some of a sampler's functions, in the given order.

    Args:
        sampler: the sampler.
        parts: names of its fields, such as "tell".
    """
    places = []
    for part in parts:
        code = code_of(getattr(sampler, part))
        if code is not None:
            file = relative_path(code.co_filename)
            places.append(f"{part} at {file}:{code.co_firstlineno}")
    return " or ".join(places)


def own_files(sampler: Sampler | Explorer) -> set[str]:
    """The files in which a sampler's functions are defined."""
    codes = [code_of(getattr(sampler, part)) for part in PARTS]
    return {code.co_filename for code in codes if code is not None}


def line_of_error(sampler: Sampler | Explorer, error: BaseException) -> str | None:
    """The innermost line of the sampler's files in an error's traceback.

    None if there is none; the error is then not the sampler's.
    """
    files = own_files(sampler)
    frames = traceback.extract_tb(error.__traceback__)
    own_frames = [frame for frame in frames if frame.filename in files]
    if not own_frames:
        return None
    last = own_frames[-1]
    return f"{last.name} at {relative_path(last.filename)}:{last.lineno}: {last.line}"
