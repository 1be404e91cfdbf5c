"""Atomic writes of files, and sentences for errors of the system.

A file is written under a temporary name in the same folder and then moved to its path,
so that a full disk or a killed process leaves the old file. Only regular files are
replaced or opened: opening a fifo without a reader would stop the program for good.
"""

import contextlib
import errno
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

OTHER_PLACE = "choose another place"

REASONS = {
    errno.ENOSPC: (
        "cannot be written, because the disk is full",
        "make room, then run the same command again",
    ),
    errno.EDQUOT: (
        "cannot be written, because the quota of this user is used up",
        "make room, then run the same command again",
    ),
    errno.EFBIG: ("would be larger than is allowed here", OTHER_PLACE),
    errno.EROFS: ("is on a file system that can only be read", OTHER_PLACE),
    errno.EACCES: (
        "may not be used by this user (permission denied)",
        f"change the permissions, or {OTHER_PLACE}",
    ),
    errno.EPERM: (
        "may not be used in this way by this user",
        f"change the permissions, or {OTHER_PLACE}",
    ),
    errno.EEXIST: ("exists and is not a folder", f"remove it, or {OTHER_PLACE}"),
    errno.ENOTDIR: (
        "leads through a file where a folder is expected",
        f"remove that file, or {OTHER_PLACE}",
    ),
    errno.EISDIR: (
        "is a folder where a file is expected",
        f"remove it, or {OTHER_PLACE}",
    ),
    errno.ENOENT: (
        "does not exist, or no longer",
        "check the path, and whether another program removed it",
    ),
    errno.ENAMETOOLONG: ("is a longer name than is allowed here", "shorten it"),
    errno.ELOOP: (
        "is a symbolic link that leads back to itself",
        f"remove it, or {OTHER_PLACE}",
    ),
    errno.EMFILE: (
        "cannot be opened, because this program has too many open files",
        "raise the limit (ulimit -n)",
    ),
    errno.ENFILE: (
        "cannot be opened, because the system has too many open files",
        "end other programs",
    ),
    errno.EIO: (
        "cannot be read or written, because the device reports an error",
        "check the disk, and whether it is still connected",
    ),
    errno.ESTALE: (
        "is no longer known to the file server",
        "check the network file system, then run the same command again",
    ),
    errno.ENOMEM: (
        "cannot be used for lack of memory",
        "end other programs, or choose a smaller task",
    ),
}
"""By error number: what is wrong with a file, and what to do."""

# Errors of Rust and TensorStore give the error number only in their text.
_IN_WORDS = re.compile(r"\(os error (\d+)\)|os_error_code='(\d+)'")
_MAX_NAME = 200
_SCRATCH = ".writing-"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class NotRegularFileError(OSError):
    """A path that holds a fifo, a device or a socket instead of a file."""


def system_error(error: BaseException) -> OSError | None:
    """The system's error that an exception is or reports; None if there is none.

    Args:
        error: an OSError, or an error of safetensors, tokenizers or orbax.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    match = _IN_WORDS.search(str(error))
    if match is not None:
        number = int(match[1] or match[2])
        name = error.filename if isinstance(error, OSError) else None
        return OSError(number, os.strerror(number), name)
    return error if isinstance(error, OSError) else None


def describe_error(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """A sentence on what the system refused, where, and what to do about it.

    Args:
        error: of the system.
        path: of the file, for errors that do not name it.
    """
    error = system_error(error) or error
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return f"The network failed ({_line(error)}); check it, then try again."
    # Errors of a file descriptor may have its number as the file name.
    filename = error.filename if isinstance(error.filename, str | bytes) else path
    name = None if filename is None else os.fsdecode(filename)
    if name is None and error.errno == errno.ENOENT and _has_no_working_folder():
        return "The working folder no longer exists; change to one that does."
    where = "A file or the output" if name is None else format_path(name)
    if isinstance(error, NotRegularFileError):
        return f"{where} is not a regular file but {error.strerror}; {OTHER_PLACE}."
    if name is not None and error.errno == errno.EEXIST and os.path.islink(name):
        target = format_path(os.readlink(name))
        return f"{where} is a symbolic link to {target}, which is not a folder; " + (
            f"remove it, or {OTHER_PLACE}."
        )
    reason, remedy = REASONS.get(
        error.errno or 0,
        (
            f"cannot be read or written ({_line(error)})",
            "check the path and its disk",
        ),
    )
    return f"{where} {reason}; {remedy}."


def format_path(path: str | bytes | os.PathLike[str]) -> str:
    """A path on one line: escaped if it cannot be printed, shortened in the middle."""
    text = os.fsdecode(path)
    if len(text) > _MAX_NAME:
        half = _MAX_NAME // 2
        text = f"{text[:half]}...{text[-half:]}"
    return text if text.isprintable() else ascii(text)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse a fifo, a device or a socket, for which a program could wait forever.

    Raises:
        OSError: the path holds something that is neither file nor folder, or it cannot
            be examined.
    """
    path = Path(path)
    if not path.exists() or path.is_file() or path.is_dir():
        return
    kinds = {
        "a fifo": path.is_fifo(),
        "a device": path.is_char_device() or path.is_block_device(),
        "a socket": path.is_socket(),
    }
    kind = next((name for name, match in kinds.items() if match), "something else")
    raise NotRegularFileError(errno.EINVAL, kind, str(path))


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace a file by the one that the block writes at the path that it gets.

    The block writes to a temporary folder, and its file replaces the old one when the
    block ends. If the block raises, the old file stays. Missing folders are made. A
    symbolic link is kept, and the file that it leads to is replaced.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    with _scratch_folder(path) as (scratch, place):
        yield scratch / place.name
        os.replace(scratch / place.name, place)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8 atomically; missing folders are created.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    with replace_file(path) as place:
        place.write_text(text, encoding="utf-8")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before its content is computed.

    Raises:
        OSError: it cannot; the error names it.
    """
    first, *rest = Path(path).parts or ("",)
    if rest and _SCHEME.fullmatch(first):
        # As a path, gs://bucket/x would make a local folder "gs:".
        kind = "what looks like an address of another file system"
        raise NotRegularFileError(errno.EINVAL, kind, str(path))
    with _scratch_folder(path) as (scratch, place):
        (scratch / place.name).touch()


@contextlib.contextmanager
def _scratch_folder(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """A temporary folder next to a file, and the file's path with links resolved."""
    place = Path(os.path.realpath(path))
    try:
        check_regular(place)
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        place.parent.mkdir(parents=True, exist_ok=True)
        # A temporary file would have other permissions than usual; a file in a
        # temporary folder has the usual ones.
        with tempfile.TemporaryDirectory(
            dir=place.parent, prefix=_SCRATCH, ignore_cleanup_errors=True
        ) as scratch:
            yield Path(scratch), place
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        name = cause.filename
        if name is None or _SCRATCH in os.fsdecode(name):
            cause = OSError(cause.errno, _line(cause), str(place))
        if cause is error:
            raise
        raise cause from error


def _line(error: BaseException) -> str:
    """The text of an error on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _has_no_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False
