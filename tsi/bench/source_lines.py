"""Where a promise stands in the source: file and line of a sampler's functions.

Wrapping by `functools.wraps`, `jax.jit` or `functools.partial` is seen through, so that
the line is that of the function that somebody wrote.
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
    """The code that runs when something is called; None if it is not Python."""
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


def shown(filename: str) -> str:
    """A path as one would write it here: relative, if the file is below."""
    path = Path(filename).resolve()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def blamed(sampler: Sampler | Explorer, *parts: str) -> str:
    """The places of some of a sampler's functions, the likeliest first.

    Args:
        sampler: whose promise was broken.
        parts: names of its fields, such as "tell".
    """
    places = []
    for part in parts:
        code = code_of(getattr(sampler, part))
        if code is not None:
            places.append(f"{part} at {shown(code.co_filename)}:{code.co_firstlineno}")
    return " or ".join(places)


def own_files(sampler: Sampler | Explorer) -> set[str]:
    """The files that a sampler's functions are written in."""
    codes = [code_of(getattr(sampler, part)) for part in PARTS]
    return {code.co_filename for code in codes if code is not None}


def raised_in(sampler: Sampler | Explorer, error: BaseException) -> str | None:
    """The innermost line of the sampler's files that an error passed through.

    None if it passed through none of them, and so is not the sampler's.
    """
    files = own_files(sampler)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in files]
    if not own:
        return None
    last = own[-1]
    return f"{last.name} at {shown(last.filename)}:{last.lineno}: {last.line}"
