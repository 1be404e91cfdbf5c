"""How every command ends: what went wrong is one sentence, and an exit code.

0: done. 1: judged and found wanting. 2: what tsi refused on purpose, or the system
refused to open, read or write. 75 (EX_TEMPFAIL): stopped by SIGTERM, or another process
of the run was lost; a scheduler may queue the same command again. What it says tells
whether that goes on (`resumable`) or begins anew.
130: stopped by Ctrl-C. 141: nobody reads the output any more, as in
``tsi paper | head -1``; nothing is said then. Any other error is a mistake in tsi and
shows its traceback.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tsi.errors import LostProcessError, Stopped, TsiError
from tsi.models.files import describe_error, system_error
from tsi.termination import terminable

REFUSED, STOPPED = 2, 128 + signal.SIGINT
REQUEUE = os.EX_TEMPFAIL
BROKEN_PIPE = 128 + signal.SIGPIPE

RESUMES = "what was written is kept, and the same command goes on from there"
RESTARTS = "the same command begins anew"


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command and say in one sentence on standard error what stopped it.

    Args:
        command: takes no arguments; a whole number that it returns is the exit code.

    Returns:
        The exit code, as the module's docstring lists them.
    """
    _escape_unencodable()
    try:
        with terminable():
            code = _run_and_flush(command)
    except BrokenPipeError:
        _discard(sys.stdout)
        return BROKEN_PIPE
    except LostProcessError as error:
        return _report(str(error), REQUEUE)
    except TsiError as error:
        return _report(str(error), REFUSED)
    except KeyboardInterrupt as error:
        consequence = (
            RESUMES if RESUMES in getattr(error, "__notes__", ()) else RESTARTS
        )
        if isinstance(error, Stopped) and error.number == signal.SIGTERM:
            return _report(f"stopped by SIGTERM; {consequence}.", REQUEUE)
        return _report(f"stopped; {consequence}.", STOPPED)
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        return _report(describe_error(cause), REFUSED)
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """A block of which a second run does only what a stop has left."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(RESUMES)
        raise


def _run_and_flush(command: Callable[[], Any]) -> Any:
    """Run a command; it is done when what it printed is out."""
    try:
        code = command()
    except SystemExit:
        # Help, or wrong arguments, which tyro has told by now.
        _flush()
        raise
    _flush()
    return code


def _flush() -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from error


def _report(text: str, code: int) -> int:
    try:
        print(f"tsi: {text}", file=sys.stderr)
    except OSError:
        # Nowhere left to say it; the code still does.
        _discard(sys.stderr)
    return code


def _discard(stream: Any) -> None:
    """Let Python's own last flush succeed, which would complain and exit with 120."""
    # A stream that is no file has none to exchange.
    with contextlib.suppress(OSError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)


def _escape_unencodable() -> None:
    """Print names of files that are no text as escapes, not as a UnicodeEncodeError."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
