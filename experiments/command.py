"""How every command ends: an error is one sentence on standard error, and an exit code.

0: done. 1: a check failed. 2: an error of tsi, or the system could not open, read or
write a file. 75 (EX_TEMPFAIL): stopped by SIGTERM, or another process of the run was
lost; a scheduler may run the same command again, and the message says whether it
resumes (`exit_resumably`) or starts again. 130: stopped by Ctrl-C. 141: the program
that reads the output has stopped reading, as in ``tsi paper | head -1``; tsi prints no
message then. Any other error is a bug in tsi and shows its traceback.
"""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tsi import errors
from tsi.errors import LostProcessError, Stopped, TsiError
from tsi.models.files import describe_error, system_error
from tsi.termination import raise_on_sigterm

REFUSED, STOPPED = 2, 128 + signal.SIGINT
REQUEUE = os.EX_TEMPFAIL
BROKEN_PIPE = 128 + signal.SIGPIPE

RESUMES = "what was written is kept, and the same command goes on from there"
RESTARTS = "the same command starts again from the beginning"


def exit_code(command: Callable[[], Any]) -> int:
    """Run a command and print in one sentence on standard error what stopped it.

    Args:
        command: takes no arguments; an integer that it returns is the exit code.

    Returns:
        The exit code; the module's docstring lists them.
    """
    _escape_unencodable()
    try:
        with raise_on_sigterm(), _plain_warnings():
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
def exit_resumably() -> Iterator[None]:
    """A block that can be resumed: a second run does only what is missing."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(RESUMES)
        raise


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print this package's warnings as sentences, without a line of its source."""
    default_format = warnings.formatwarning

    def format_warning(
        message: Warning | str, category: type[Warning], *place: Any
    ) -> str:
        if category.__module__ == errors.__name__:
            return f"tsi: {message}\n"
        return default_format(message, category, *place)

    warnings.formatwarning = format_warning  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = default_format


def _run_and_flush(command: Callable[[], Any]) -> Any:
    """Run a command and flush what it printed."""
    try:
        code = command()
    except SystemExit:
        # tyro has already printed the help or the wrong arguments.
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
        # Standard error is closed too; the exit code remains.
        _discard(sys.stderr)
    return code


def _discard(stream: Any) -> None:
    """Redirect a closed stream, so that Python's last flush does not exit with 120."""
    # A stream without a file descriptor needs no redirection.
    with contextlib.suppress(OSError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)


def _escape_unencodable() -> None:
    """Print names of files that are not valid text with escapes, and do not raise."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
