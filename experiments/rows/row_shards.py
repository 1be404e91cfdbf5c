"""Rows in shards: every process writes its own shard and reads all.

On local file systems process 0 writes ``rows.jsonl``, process 1 ``rows-1.jsonl`` and so
on, and each process locks its file (`files/append_only.py`). Process 0 also locks the
shards of processes that this run does not have, so that only one run writes at a time.
Object stores have neither appends nor locks: there, every flush is a separate object in
the folder ``rows``, with a unique name.

It does not matter which process wrote a row: the next run, of any number of processes,
reads all shards. When a run is complete, its first process collects all rows in
``rows.jsonl``. Without locks another run may do so at the same time, and of two writes
to one name the later one remains. Therefore all rows are first written to a new object
in ``rows``, and ``rows.jsonl`` is a copy of it. Only objects whose rows are in that new
object are removed, so that every row is always in an object that no one overwrites.
"""

import contextlib
import io
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from tsi.errors import ResultsError
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.files.json_lines import FileView, LineError, without_half_line
from tsi.experiments.files.places import Place, file_system, typed_errors
from tsi.experiments.rows.row_format import ROWS
from tsi.models.files import check_regular, describe_error

Lines = Iterator[bytes]
"""The lines of a shard without their newlines, read one at a time."""

MAX_LISTINGS = 10
"""How many times objects are listed, if one is removed before it is read."""
VISIBILITY_TIMEOUT = 30.0
"""Seconds until a network file system shows a file that another host has created."""


class LocalShards:
    """Files in one folder, one per process.

    Args:
        path: of the first process's file.
        index, count: index of this process, and number of processes.

    Raises:
        ResultsError: another run writes to one of them, it is another kind of file, or
            it cannot be opened.
    """

    has_segments = False
    """Whether each append is a separate file."""

    def __init__(self, path: Path, index: int = 0, count: int = 1) -> None:
        self._first, self.count = path, count
        self.path = shard_path(path, index)
        self._own = AppendOnlyFile(self.path, ROWS)
        self._orphans: dict[Path, AppendOnlyFile] = {}
        self._seen: list[Path] = []
        try:
            for number, other in shard_paths(path) if index == 0 else ():
                if number >= count:
                    self._orphans[other] = AppendOnlyFile(other, ROWS)
        except BaseException:
            self.close()
            raise

    def lines(self) -> Lines:
        """The shard of this process, with rows of earlier runs."""
        return self._own.lines()

    def other_lines(self) -> Iterator[tuple[Place, Lines]]:
        """The shards of other processes, with their names."""
        paths = [path for _, path in [(0, self._first), *shard_paths(self._first)]]
        self._seen = [path for path in paths if path != self.path and _is_there(path)]
        return self.reread_lines()

    def reread_lines(self) -> Iterator[tuple[Place, Lines]]:
        """The shards that `other_lines` has found, read again."""
        for path in self._seen:
            orphan = self._orphans.get(path)
            lines = read_lines(path) if orphan is None else orphan.lines()
            yield path, without_half_line(lines)

    def repair(self) -> None:
        """Move incomplete last lines to other files, once all files are valid."""
        for file in (self._own, *self._orphans.values()):
            file.repair()

    def append(self, lines: bytes) -> None:
        """Write complete lines and flush them to disk."""
        self._own.append(lines)

    def check_sharing(self) -> None:
        """Refuse processes that do not see each other's shards.

        Raises:
            ResultsError: a shard does not become visible.
        """
        deadline = time.monotonic() + VISIBILITY_TIMEOUT
        paths = [shard_path(self._first, i) for i in range(self.count)]
        while missing := [path for path in paths if not path.exists()]:
            if time.monotonic() > deadline:
                raise ResultsError(
                    f"{missing[0]}, which another process has made, is not there for "
                    "this one. Set --out to a folder that all processes share, or to "
                    "an object store."
                )
            time.sleep(0.2)

    def fold(self, blocks: Iterable[bytes]) -> None:
        """Append the rows of the other shards to this one, and remove those shards.

        Args:
            blocks: rows of the shards that were read last, without those in this one.
        """
        for block in blocks:
            self._own.append(block)
        for path in self._seen:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release all files."""
        for file in (self._own, *self._orphans.values()):
            file.close()


class RemoteShards:
    """Objects of any fsspec file system, one per flush.

    Args:
        address: of the file in which a complete run collects its rows.
        index: of this process.

    Raises:
        ConfigurationError: there is no such file system.
        ResultsError: it cannot be used.
    """

    has_segments = True
    """Whether each append is a separate file."""

    def __init__(self, address: str, index: int = 0) -> None:
        self.path, self.index = address, index
        self._system, self._file = file_system(address)
        self._folder = self._file.removesuffix(".jsonl")
        self._seen: dict[str, bytes] = {}

    def make_folder(self) -> None:
        """Create the folder that objects are written to."""
        with typed_errors(self.path):
            self._system.makedirs(self._folder, exist_ok=True)

    def lines(self) -> Lines:
        """Nothing, because objects do not belong to a process."""
        return iter(())

    def other_lines(self) -> Iterator[tuple[Place, Lines]]:
        """All objects with rows, with their names."""
        with typed_errors(self.path):
            for attempts_left in reversed(range(MAX_LISTINGS)):
                # The cache lacks objects that other processes have written since.
                self._system.invalidate_cache()
                try:
                    self._seen = self._contents()
                    break
                except FileNotFoundError:
                    # Another run has moved its rows to a new object.
                    if not attempts_left:
                        raise
        return self.reread_lines()

    def reread_lines(self) -> Iterator[tuple[Place, Lines]]:
        """The objects that `other_lines` has read."""
        for name, content in self._seen.items():
            lines = (line.removesuffix(b"\n") for line in io.BytesIO(content))
            yield name, without_half_line(lines)

    def repair(self) -> None:
        """Nothing to repair: incomplete objects are left out, and never changed."""

    def append(self, lines: bytes) -> None:
        """Write complete lines as a new object."""
        if lines:
            with typed_errors(self.path):
                self._write(lines)

    def check_sharing(self) -> None:
        """Nothing to check: all processes have the same address."""

    def fold(self, blocks: Iterable[bytes]) -> None:
        """Write all rows as one object, and remove the objects that were read last.

        Args:
            blocks: all rows, each once.
        """
        lines = b"".join(blocks)
        contents = list(self._seen.values())
        is_folded = self._file in self._seen and contents in ([lines], [lines] * 2)
        if not lines or is_folded:
            return
        with typed_errors(self.path):
            segments = self._seen.keys() - {self._file}
            self._write(lines)
            # A kill may leave an incomplete copy; the next run detects that it differs.
            self._system.pipe_file(self._file, lines)
            for name in segments:
                # Another run may have removed it.
                with contextlib.suppress(FileNotFoundError):
                    self._system.rm_file(name)

    def close(self) -> None:
        """Nothing to release."""

    def _write(self, lines: bytes) -> None:
        name = f"{time.time_ns():020d}-{self.index}-{uuid.uuid4().hex[:8]}"
        self._system.pipe_file(f"{self._folder}/{name}.jsonl", lines)

    def _contents(self) -> dict[str, bytes]:
        segments = sorted(
            name for name in self._list(self._folder) if name.endswith(".jsonl")
        )
        names = [self._file] if self._system.exists(self._file) else []
        return {name: self._system.cat_file(name) for name in [*names, *segments]}

    def _list(self, folder: str) -> list[str]:
        try:
            return [str(name) for name in self._system.ls(folder, detail=False)]
        except FileNotFoundError:
            return []


Shards = LocalShards | RemoteShards


def open_shards(path: Place, index: int = 0, count: int = 1) -> Shards:
    """The shards of a file of rows, for one of several processes."""
    if isinstance(path, str):
        shards = RemoteShards(path, index)
        shards.make_folder()
        return shards
    return LocalShards(path, index, count)


def read_shards(path: Place) -> Iterator[tuple[Place, Lines]]:
    """The names and lines of all shards of a file of rows, without locks.

    There are none if the folder has no such file.

    Raises:
        ResultsError: a shard cannot be read.
    """
    if isinstance(path, str):
        yield from RemoteShards(path).other_lines()
        return
    for _, shard in [(0, path), *shard_paths(path)]:
        if _is_there(shard):
            yield shard, without_half_line(read_lines(shard))


def shard_path(path: Path, index: int) -> Path:
    """The path of a process's shard."""
    return path.with_stem(f"{path.stem}-{index}") if index else path


def shard_paths(path: Path) -> list[tuple[int, Path]]:
    """Shards of processes other than the first, with their indices, in order."""
    pattern = re.compile(
        rf"{re.escape(path.stem)}-([1-9][0-9]*){re.escape(path.suffix)}"
    )
    try:
        matches = [(pattern.fullmatch(x.name), x) for x in path.parent.iterdir()]
    except OSError:
        return []
    return sorted((int(match[1]), x) for match, x in matches if match is not None)


def read_lines(path: Path) -> Lines:
    """The lines of a file, without a lock.

    Raises:
        ResultsError: the system cannot read it, or a line is too long.
    """
    try:
        check_regular(path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield from FileView(descriptor, os.fstat(descriptor).st_size).lines()
        finally:
            os.close(descriptor)
    except LineError as error:
        raise ResultsError(f"{path}: {error}.") from error
    except FileNotFoundError:
        # Another process has just folded it.
        return
    except OSError as error:
        raise ResultsError(describe_error(error, path)) from error


def _is_there(path: Path) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ResultsError(describe_error(error, path)) from error
    return True
