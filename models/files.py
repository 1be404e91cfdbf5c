"""Files written whole or not at all, and sentences for what a system refuses.

A file is written beside its place and then put there, so that a full disk or a kill
leaves the file of before. Nothing but a regular file is ever replaced or waited for: a
fifo without a reader would stop a program for good.
"""

import contextlib
import errno
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHOOSE = "choose another place"

REASONS = {
    errno.ENOSPC: (
        "cannot be written, because the disk is full",
        "make room, then run the same command again",
    ),
    errno.EDQUOT: (
        "cannot be written, because the quota of this user is used up",
        "make room, then run the same command again",
    ),
    errno.EFBIG: ("would be larger than is allowed here", CHOOSE),
    errno.EROFS: ("is on a file system that can only be read", CHOOSE),
    errno.EACCES: (
        "may not be used by this user (permission denied)",
        f"change the permissions, or {CHOOSE}",
    ),
    errno.EPERM: (
        "may not be used in this way by this user",
        f"change the permissions, or {CHOOSE}",
    ),
    errno.EEXIST: ("exists and is not a folder", f"remove it, or {CHOOSE}"),
    errno.ENOTDIR: (
        "leads through a file where a folder is meant",
        f"remove that file, or {CHOOSE}",
    ),
    errno.EISDIR: (
        "is a folder where a file is meant",
        f"remove it, or {CHOOSE}",
    ),
    errno.ENOENT: (
        "does not exist, or no longer",
        "check the path, and whether another program removed it",
    ),
    errno.ENAMETOOLONG: ("is a longer name than is allowed here", "shorten it"),
    errno.ELOOP: (
        "is a symbolic link that leads back to itself",
        f"remove it, or {CHOOSE}",
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
"""What an error number says of a file, and what to do."""

# How Rust's and TensorStore's errors give the number, in words alone.
_IN_WORDS = re.compile(r"\(os error (\d+)\)|os_error_code='(\d+)'")
_LONGEST_NAME = 200
_SCRATCH = ".writing-"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class NotRegularFileError(OSError):
    """A path that holds a fifo, a device or a socket where a file is meant."""


def system_error(error: BaseException) -> OSError | None:
    """The error of the system that an exception is or tells of, if it does.

    Args:
        error: an OSError, or what safetensors, tokenizers or orbax raise in its place.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = _IN_WORDS.search(str(error))
    if found is not None:
        number = int(found[1] or found[2])
        name = error.filename if isinstance(error, OSError) else None
        return OSError(number, os.strerror(number), name)
    return error if isinstance(error, OSError) else None


def sentence(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """What the system refused, where, and what to do about it.

    Args:
        error: what it raised.
        path: of the file, for errors that do not name it.
    """
    error = system_error(error) or error
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return f"The network failed ({_line(error)}); check it, then try again."
    # Errors of a descriptor may give its number as the name.
    known = error.filename if isinstance(error.filename, str | bytes) else path
    named = None if known is None else os.fsdecode(known)
    if named is None and error.errno == errno.ENOENT and _is_lost():
        return "The working folder no longer exists; change to one that does."
    where = "A file or the output" if named is None else shown(named)
    if isinstance(error, NotRegularFileError):
        return f"{where} is not a regular file but {error.strerror}; {CHOOSE}."
    if named is not None and error.errno == errno.EEXIST and os.path.islink(named):
        target = shown(os.readlink(named))
        return f"{where} is a symbolic link to {target}, which is not a folder; " + (
            f"remove it, or {CHOOSE}."
        )
    reason, remedy = REASONS.get(
        error.errno or 0,
        (
            f"cannot be read or written ({_line(error)})",
            "check that the path and its disk are as they should be",
        ),
    )
    return f"{where} {reason}; {remedy}."


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path on one line, escaped where it cannot be printed, its middle left out."""
    text = os.fsdecode(path)
    if len(text) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        text = f"{text[:half]}...{text[-half:]}"
    return text if text.isprintable() else ascii(text)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse a fifo, a device or a socket, which one could wait for without end.

    Raises:
        OSError: the path holds something that is neither file nor folder, or cannot be
            looked at.
    """
    path = Path(path)
    if not path.exists() or path.is_file() or path.is_dir():
        return
    kinds = {
        "a fifo": path.is_fifo(),
        "a device": path.is_char_device() or path.is_block_device(),
        "a socket": path.is_socket(),
    }
    kind = next((name for name, yes in kinds.items() if yes), "something else")
    raise NotRegularFileError(errno.EINVAL, kind, str(path))


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside a file to write it, from which it is moved when the block ends.

    Folders are made. Where the block raises, the file is as it was. A symbolic link
    stays one: the file that it leads to is replaced.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    with _beside(path) as (scratch, place):
        yield scratch / place.name
        os.replace(scratch / place.name, place)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, whole or not at all; folders are made.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    with replaced(path) as place:
        place.write_text(text, encoding="utf-8")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Try whether a file can be written, before the work whose result it is to hold.

    Raises:
        OSError: it cannot; the error names it.
    """
    first, *rest = Path(path).parts or ("",)
    if rest and _SCHEME.fullmatch(first):
        # gs://bucket/x, of which a path makes a local folder gs:
        kind = "what looks like an address of another file system"
        raise NotRegularFileError(errno.EINVAL, kind, str(path))
    with _beside(path) as (scratch, place):
        (scratch / place.name).touch()


@contextlib.contextmanager
def _beside(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """A folder to write in beside a file, and the file with all links followed."""
    place = Path(os.path.realpath(path))
    try:
        check_regular(place)
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
        place.parent.mkdir(parents=True, exist_ok=True)
        # A folder and not a file: what is written in it has the usual permissions.
        with tempfile.TemporaryDirectory(
            dir=place.parent, prefix=_SCRATCH, ignore_cleanup_errors=True
        ) as scratch:
            yield Path(scratch), place
    except Exception as error:
        found = system_error(error)
        if found is None:
            raise
        named = found.filename
        if named is None or _SCRATCH in os.fsdecode(named):
            found = OSError(found.errno, _line(found), str(place))
        if found is error:
            raise
        raise found from error


def _line(error: BaseException) -> str:
    """What an error says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _is_lost() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False
