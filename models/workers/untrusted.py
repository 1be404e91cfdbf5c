"""Work on the files of an unknown model, done in a process with limits.

A chat template is a program, and a tokenizer with regular expressions can behave like
one: both may loop, or need more memory than there is. One process runs them for all
models; it is started when it is first needed. Each request has limits of processor time
and memory. Python code that exceeds them is stopped, and the process goes on. See
:func:`build` for tokenizers and :func:`render` for templates.
"""

import atexit
import functools
import os
import sys
from pathlib import Path
from typing import Any

import tsi.errors as errors
from tsi.errors import CheckpointError
from tsi.models.workers.limited_process import (
    LimitedProcess,
    ProcessEndedError,
    ProcessLateError,
    ProcessNotReadyError,
)
from tsi.models.workers.process_limits import LimitExceeded, Limits

BUILD = Limits(60.0, 2048)
"""Limits of reading a tokenizer's files. A file of 22 MB with 262,000 tokens and as
many merges took 3.3 s and 430 MB."""
RENDER = Limits(2.0, 256)
ENCODE = Limits(5.0, 1024)

WALL_FACTOR, WALL_SECONDS = 20.0, 60.0
"""The process counts as hanging after ``WALL_FACTOR`` times the limit of processor
time plus ``WALL_SECONDS``."""

# Importing tsi in the usual way imports JAX, which takes a second and is not needed.
_START = """
import sys, types
package = types.ModuleType("tsi")
package.__path__ = [sys.argv[1]]
sys.modules["tsi"] = package
from tsi.models.loading.untrusted_worker import serve
serve()
"""


class RefusedError(Exception):
    """The work failed; the message says why."""


class PanickedError(RefusedError):
    """The work failed with a panic of a Rust library."""


def build(path: Path) -> None:
    """Check that the tokenizer of a folder or file can be read within the limits.

    The caller may then read it again without limits.

    Raises:
        CheckpointError: it cannot be read, or not within the limits.
    """
    try:
        _ask(BUILD, "build", os.path.abspath(path))
    except RefusedError as error:
        raise CheckpointError(str(error)) from None
    except LimitExceeded as error:
        raise CheckpointError(
            f"{path} does not hold a usable tokenizer: to build it {error}. Download "
            "the model again, or choose another."
        ) from None


def render(source: str, messages: list[dict[str, str]], variables: dict) -> str:
    """The text that a chat template renders for some messages.

    Raises:
        RefusedError: the template fails.
        LimitExceeded: it takes too much time or memory, or its text is too long.
    """
    return _ask(RENDER, "render", source, messages, variables)


def variables_of(source: str) -> list[str]:
    """The variables that a chat template reads and does not set itself.

    Raises:
        RefusedError: the source is not a valid template.
        LimitExceeded: reading it takes too much time or memory.
    """
    return _ask(RENDER, "variables_of", source)


def encode(state: str, name: str, text: str) -> tuple[list[int], str]:
    """The ids of a text, and the text as the tokenizer normalises it.

    Args:
        state: the tokenizer, in the form of a tokenizer.json.
        name: unique to this tokenizer; the state is sent once per name.
        text: to encode.

    Raises:
        RefusedError: the tokenizer fails.
        LimitExceeded: it takes too much time or memory, or makes too many tokens.
    """
    reply = _ask(ENCODE, "encode", name, text)
    if reply is None:
        _ask(BUILD, "keep", name, state)
        reply = _ask(ENCODE, "encode", name, text)
    ids, normalized = reply
    return ids, normalized


def close() -> None:
    """Stop the process; the next request starts another."""
    if _process.cache_info().currsize:
        _process().close()


@functools.cache
def _process() -> LimitedProcess:
    process = LimitedProcess(
        [sys.executable, "-P", "-c", _START, os.path.dirname(errors.__file__)],
        {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
        discards_stderr=True,
    )
    atexit.register(process.close)
    return process


def _ask(limits: Limits, kind: str, *arguments: Any) -> Any:
    seconds = WALL_FACTOR * limits.seconds + WALL_SECONDS
    try:
        state, value = _process().ask([limits, kind, arguments], seconds)
    except ProcessLateError:
        raise LimitExceeded(f"took more than {seconds:g} s") from None
    except ProcessEndedError:
        raise LimitExceeded(
            f"took more than {limits.seconds:g} s of processor time or "
            f"{limits.megabytes} MB of memory, or ended the process that tried"
        ) from None
    except ProcessNotReadyError as error:
        raise RefusedError(
            f"the process that reads files of unknown models did not start: {error}"
        ) from None
    if state == "exceeded":
        raise LimitExceeded(value)
    if state == "panicked":
        # The library that panicked may hold its locks forever.
        _process().close()
        raise PanickedError(value)
    if state == "refused":
        raise RefusedError(value)
    return value
