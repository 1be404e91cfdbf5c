"""An append-only file of lines: each append writes all its lines, or none.

Every append is flushed to disk. A line that a kill left incomplete is dropped when the
file is opened again. If the disk is full, the file is cut back to complete lines, so
that it stays valid. A file that is removed during a run is written again. A lock keeps
other processes from writing, if the file system has locks.
"""

import contextlib
import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tsi.errors import ResultsError
from tsi.models.files import check_regular, describe_error

LOCK_HELD = errno.EWOULDBLOCK
"""The error of flock if another process holds the lock."""

NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
)
"""Errors of flock on file systems without locks: some network and user-space ones."""


class AppendOnlyFile:
    """Lines of JSON, locked against a second writer.

    Args:
        path: of the file; missing folders are created.

    Raises:
        ResultsError: another run writes to it, or the system cannot open it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        with self._typed_errors():
            check_regular(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
        try:
            with self._typed_errors():
                self._drop_incomplete_line()
        except BaseException:
            self.close()
            raise

    def append(self, lines: bytes) -> None:
        """Write complete lines and flush them to disk; if that fails, write none.

        Raises:
            ResultsError: the system cannot write them.
        """
        with self._typed_errors(" What was written before is kept."):
            if self._is_removed():
                self._restore()
            size = os.fstat(self._descriptor).st_size
            try:
                _write(self._descriptor, lines)
                os.fsync(self._descriptor)
            except BaseException:
                # Also after a signal between two parts of a write.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, size)
                raise

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            ResultsError: the system cannot read it.
        """
        with self._typed_errors():
            return _read_all(self._descriptor)

    def close(self) -> None:
        """Release the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "AppendOnlyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _typed_errors(self, remark: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultsError(f"{describe_error(error, self.path)}{remark}") from error

    def _open(self, extra_flags: int = 0) -> int:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | extra_flags
        descriptor = os.open(self.path, flags, 0o666)
        try:
            _lock(descriptor, self.path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _is_removed(self) -> bool:
        status = os.fstat(self._descriptor)
        if status.st_nlink:
            return False
        try:
            # Some file systems do not count links.
            return not os.path.samestat(status, os.stat(self.path))
        except FileNotFoundError:
            return True

    def _restore(self) -> None:
        """Write the file again after another program removed it."""
        content = _read_all(self._descriptor)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = self._open(os.O_EXCL)
        except FileExistsError as error:
            raise ResultsError(
                f"{self.path} was replaced by another file while this run wrote to it; "
                "choose an output folder that no other program uses."
            ) from error
        _write(descriptor, content)
        os.close(self._descriptor)
        self._descriptor = descriptor
        print(
            f"{self.path} was removed during this run, and is written again.",
            file=sys.stderr,
        )

    def _drop_incomplete_line(self) -> None:
        content = _read_all(self._descriptor)
        size = content.rfind(b"\n") + 1
        start = content.rfind(b"\n", 0, size - 1) + 1
        if size == len(content) and not is_json(content[start:]):
            size = start
        if size < len(content):
            os.ftruncate(self._descriptor, size)
            print(
                f"{self.path}: dropped an incomplete last line of "
                f"{len(content) - size} bytes; its row will be computed again.",
                file=sys.stderr,
            )


def _read_all(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts, start = [], 0
    while start < size:
        parts.append(os.pread(descriptor, size - start, start))
        start += len(parts[-1])
        if not parts[-1]:
            break
    return b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def is_json(line: bytes) -> bool:
    """Whether a line is valid JSON; an incomplete line is not."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == LOCK_HELD:
            raise ResultsError(
                f"{path} is being written by another run; wait for it or choose "
                "another output folder."
            ) from error
        if error.errno not in NO_LOCKS:
            raise
        print(
            f"{path}: its file system has no locks ({os.strerror(error.errno)}); make "
            "sure that no other run writes to this file.",
            file=sys.stderr,
        )
