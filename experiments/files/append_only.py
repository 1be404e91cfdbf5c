"""An append-only file: each append writes all its records, or none.

Every append is flushed to disk. If the disk is full, the file is cut back to complete
records, so that it stays valid. A file that is removed during a run is written again. A
lock keeps other processes from writing, if the file system has locks.

A record that a kill left incomplete is moved to ``NAME.dropped-1`` in the same folder,
before the first append after it. Until then nothing is written: a file of another kind
is refused and not changed.
"""

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tsi.errors import ResultsError
from tsi.experiments.files.json_lines import (
    CHUNK,
    Ending,
    FileView,
    JsonLines,
    Layout,
    LineError,
)
from tsi.models.files import check_regular, describe_error

LOCK_HELD = errno.EWOULDBLOCK
"""The error of flock if another process holds the lock."""

NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
)
"""Errors of flock on file systems without locks: some network and user-space ones."""


class AppendOnlyFile:
    """Records in a file, locked against a second writer.

    Args:
        path: of the file; missing folders are created.
        layout: of its records, by default lines of JSON objects.

    Raises:
        ResultsError: another run writes to it, it is another kind of file, or the
            system cannot open it.
    """

    def __init__(self, path: Path, layout: Layout = JsonLines()) -> None:  # noqa: B008
        self.path, self._layout = path, layout
        self._descriptor = -1
        with self._typed_errors():
            check_regular(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._open()
        try:
            with self._typed_errors():
                ending = layout.find_end(self._view())
                self._ending: Ending | None = ending
        except LineError as error:
            self.close()
            raise ResultsError(
                f"{path} is not a {layout.kind}: {error}. It was left as it is; move "
                "it away, or choose another output folder."
            ) from error
        except BaseException:
            self.close()
            raise

    @property
    def view(self) -> FileView:
        """The complete records."""
        view = self._view()
        if self._ending is None:
            return view
        return view._replace(size=min(view.size, self._ending.size))

    def repair(self) -> None:
        """Move an incomplete last record to another file in the same folder.

        Raises:
            ResultsError: the system cannot write.
        """
        if self._ending is None:
            return
        size, suffix = self._ending
        view = self._view()
        with self._typed_errors():
            if view.size > size:
                self._set_aside(view.read(size, view.size))
                os.ftruncate(self._descriptor, size)
            if suffix:
                _write(self._descriptor, suffix)
                os.fsync(self._descriptor)
        # Once: on a file system without locks another process may write later.
        self._ending = None

    def append(self, records: bytes) -> None:
        """Write complete records and flush them to disk; if that fails, write none.

        Raises:
            ResultsError: the system cannot write them.
        """
        self.repair()
        with self._typed_errors(" What was written before is kept."):
            if self._is_removed():
                self._restore()
            size = os.fstat(self._descriptor).st_size
            try:
                _write(self._descriptor, records)
                os.fsync(self._descriptor)
            except BaseException:
                # Also after a signal between two parts of a write.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, size)
                raise

    def lines(self) -> Iterator[bytes]:
        """The lines of a file of lines, without their newlines.

        Raises:
            ResultsError: a line is too long, or the system cannot read it.
        """
        with self._typed_errors():
            try:
                yield from self.view.lines()
            except LineError as error:
                raise ResultsError(f"{self.path}: {error}.") from error

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = self._open(os.O_EXCL)
        except FileExistsError as error:
            raise ResultsError(
                f"{self.path} was replaced by another file while this run wrote to it; "
                "choose an output folder that no other program uses."
            ) from error
        view = self._view()
        for start in range(0, view.size, CHUNK):
            _write(descriptor, view.read(start, start + CHUNK))
        os.close(self._descriptor)
        self._descriptor = descriptor
        print(
            f"{self.path} was removed during this run, and is written again.",
            file=sys.stderr,
        )

    def _view(self) -> FileView:
        return FileView(self._descriptor, os.fstat(self._descriptor).st_size)

    def _set_aside(self, dropped: bytes) -> None:
        """Write what is dropped to a new file, before it is cut off."""
        number, flags = 1, os.O_WRONLY | os.O_CREAT | os.O_EXCL
        while True:
            place = self.path.with_name(f"{self.path.name}.dropped-{number}")
            try:
                descriptor = os.open(place, flags, 0o666)
                break
            except FileExistsError:
                number += 1
        try:
            _write(descriptor, dropped)
            os.fsync(descriptor)
        except BaseException:
            place.unlink()
            raise
        finally:
            os.close(descriptor)
        print(
            f"{self.path}: dropped an incomplete last {self._layout.record} of "
            f"{len(dropped)} bytes, which will be computed again; the bytes are in "
            f"{place}.",
            file=sys.stderr,
        )


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


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
