"""What the files of an unknown model make libraries do, done within limits.

A chat template is a program, and so is a tokenizer with regular expressions: either may
loop, or ask for more memory than there is. One process of the package runs them, for
all models, and is started when it is first needed. It has limits of processor time and
memory for each question, and Python code that exceeds them is stopped without an end of
the process. See :func:`build` for tokenizers and :func:`render` for templates.
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
"""Of reading a tokenizer's files; 262,000 tokens with as many merges, a file of 22 MB,
took 3.3 s and 430 MB."""
RENDER = Limits(2.0, 256)
ENCODE = Limits(5.0, 1024)

WALL_FACTOR, WALL_SECONDS = 20.0, 60.0
"""From processor time to the time after which the process counts as hanging."""

# The package's own start imports JAX, which takes a second and is not needed there.
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
    """The same, in a way that the library does not foresee."""


def build(path: Path) -> None:
    """Read the tokenizer of a folder or file, and throw it away.

    Whoever reads it afterwards does what has been done within the limits already.

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
    """The text that a chat template makes of some messages.

    Raises:
        RefusedError: the template fails.
        LimitExceeded: it takes too much time or memory, or writes too much.
    """
    return _ask(RENDER, "render", source, messages, variables)


def variables_of(source: str) -> list[str]:
    """The names that a chat template reads and does not set itself.

    Raises:
        RefusedError: the source is not a valid template.
        LimitExceeded: reading it takes too much time or memory.
    """
    return _ask(RENDER, "variables_of", source)


def encode(state: str, name: str, text: str) -> tuple[list[int], str]:
    """The ids of a text, and the text as the tokenizer normalises it.

    Args:
        state: the tokenizer, in the form of a tokenizer.json.
        name: that no other tokenizer has; the state is sent once.
        text: to encode.

    Raises:
        RefusedError: the tokenizer fails.
        LimitExceeded: it takes too much time or memory, or makes the text too long.
    """
    found = _ask(ENCODE, "encode", name, text)
    if found is None:
        _ask(BUILD, "keep", name, state)
        found = _ask(ENCODE, "encode", name, text)
    ids, normalised = found
    return ids, normalised


def close() -> None:
    """Stop the process; the next question starts another."""
    if _process.cache_info().currsize:
        _process().close()


@functools.cache
def _process() -> LimitedProcess:
    process = LimitedProcess(
        [sys.executable, "-P", "-c", _START, os.path.dirname(errors.__file__)],
        {"TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
        quiet=True,
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
            f"the process for the work of unknown models did not start: {error}"
        ) from None
    if state == "exceeded":
        raise LimitExceeded(value)
    if state == "panicked":
        # Locks of the package that panicked may be taken for ever.
        _process().close()
        raise PanickedError(value)
    if state == "refused":
        raise RefusedError(value)
    return value
