"""Files of kept particles, compressed, and written before the rows.

The particles of ``rows.jsonl`` are in ``rows.particles.jsonl.gz``. Each append is one
gzip member and is flushed to disk before the rows derived from its records, so that
every row has its texts. Several processes write a shard each, as for rows, and the
first one collects them when a run is complete. On an object store each append is an
object in the folder ``rows.particles``, and they stay there.

A kill between the two writes leaves records without rows. These runs are repeated, with
the same random numbers, and the file then has two records of them, equal up to
rounding; a reader gets the first. If the texts differ, as over a server without seeds,
a reader gets both, and rows name the texts from which they were computed.
"""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsi.errors import ResultsError
from tsi.experiments.files.append_only import AppendOnlyFile
from tsi.experiments.files.gzip_members import (
    DamagedMemberError,
    GzipMembers,
    compress_member,
    decompress,
    decompressed_lines,
)
from tsi.experiments.files.json_lines import (
    BytesView,
    FileView,
    LineError,
    parse_object,
)
from tsi.experiments.files.places import Place, file_system, typed_errors
from tsi.experiments.rows.kept_particles import (
    KeptRun,
    RunKey,
    parse_record,
    record_line,
)
from tsi.experiments.rows.row_format import (
    SETTINGS_ID,
    as_json,
    id_of_settings,
    is_settings_line,
    parse_settings,
    settings_line,
)
from tsi.experiments.rows.row_shards import shard_path
from tsi.models.files import check_regular, describe_error

SUFFIX = ".particles.jsonl.gz"

FOLD_BYTES = 2**23
"""Compressed bytes of other shards that are appended at once."""


def _check_line(line: dict[str, Any]) -> None:
    if is_settings_line(line):
        parse_settings(line)
    else:
        parse_record(line, {})


PARTICLES = GzipMembers(
    "file of particles",
    check=_check_line,
    beginnings=(b'{"method": "', b'{"settings_id": "'),
)
"""How `files/append_only.py` recognises a file of particles."""


def particles_place(rows: Place) -> Place:
    """Where the particles of a file of rows are: a file, or a folder of objects."""
    if isinstance(rows, str):
        return f"{rows.removesuffix('.jsonl')}.particles"
    return rows.with_name(f"{rows.name.removesuffix('.jsonl')}{SUFFIX}")


class ParticlesFile:
    """Writes the particles of one process.

    Args:
        rows: place of the file of rows, or of its first shard.
        index: of this process.

    Raises:
        ResultsError: the file is another kind of file, another run writes to it, or it
            cannot be opened.
    """

    def __init__(self, rows: Place, index: int = 0) -> None:
        self.path, self.index = particles_place(rows), index
        self._rows = rows
        self._file: AppendOnlyFile | None = None
        self._known: set[str] = set()
        if isinstance(rows, Path):
            path = shard_path(rows, index)
            self._file = AppendOnlyFile(Path(particles_place(path)), PARTICLES)
            self._file.repair()
        else:
            self._system, self._folder = file_system(str(self.path))

    def append(
        self, records: Sequence[dict[str, Any]], settings: Mapping[str, Any]
    ) -> None:
        """Write records of one method, and flush them to disk.

        Args:
            records: see `tsi.experiments.rows.kept_particles.record_of`.
            settings: of these records, as rows have them.

        Raises:
            ResultsError: the system cannot write; no record is written.
        """
        if not records:
            return
        recorded = as_json(dict(settings))
        name = id_of_settings(recorded)
        lines = [record_line(record, name) for record in records]
        if name not in self._known:
            lines.insert(0, settings_line(recorded))
        member = compress_member(b"".join(lines))
        if self._file is not None:
            self._file.append(member)
            self._known.add(name)
            return
        with typed_errors(str(self.path)):
            self._system.makedirs(self._folder, exist_ok=True)
            file_name = f"{time.time_ns():020d}-{self.index}-{uuid.uuid4().hex[:8]}"
            self._system.pipe_file(f"{self._folder}/{file_name}.jsonl.gz", member)

    def fold(self) -> None:
        """Append the shards of the other processes to this one, and remove them.

        A kill leaves some records in two shards, of which a reader gets one.

        Raises:
            ResultsError: a shard is being written, or cannot be read.
        """
        if self._file is None:
            return
        for path in particle_files(Path(self._rows)):
            if path == self._file.path:
                continue
            with AppendOnlyFile(path, PARTICLES) as shard:
                for block in _blocks(shard.view):
                    self._file.append(block)
            path.unlink()

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "ParticlesFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _blocks(view: FileView) -> Iterator[bytes]:
    """The complete members of a file, some megabytes at a time."""
    start = end = 0
    with contextlib.suppress(DamagedMemberError):
        for piece in decompress(view):
            end = end if piece.end is None else piece.end
            if end - start > FOLD_BYTES:
                yield view.read(start, end)
                start = end
    if end > start:
        yield view.read(start, end)


def particle_files(rows: Path) -> list[Path]:
    """The files of all processes that exist, that of the first process first."""
    first = Path(particles_place(rows))
    name, end = map(re.escape, (first.name.removesuffix(SUFFIX), SUFFIX))
    pattern = re.compile(rf"{name}-([1-9][0-9]*){end}")
    matches = [(pattern.fullmatch(x.name), x) for x in rows.parent.glob(f"*{SUFFIX}")]
    shards = sorted((int(match[1]), x) for match, x in matches if match is not None)
    return [path for path in (first, *(x for _, x in shards)) if path.exists()]


def read_particles(place: Place, *, unique: bool = True) -> Iterator[KeptRun]:
    """The kept runs of a file of rows, one at a time; read without a lock.

    Args:
        place: of the file of rows; or one file of particles.
        unique: leave out the second record of a run with the same texts, which differs
            only by rounding.

    Raises:
        ResultsError: there are none, or a record is malformed; the message names file
            and line.
    """
    seen: set[tuple[RunKey, str]] = set()
    is_missing = True
    for name, lines in _sources(place):
        is_missing = False
        settings: dict[str, dict[str, Any]] = {}
        number = 0
        try:
            for number, line in enumerate(lines, start=1):  # noqa: B007
                record = parse_object(line)
                if is_settings_line(record):
                    settings_id, values = parse_settings(record)
                    settings.setdefault(settings_id, values)
                    continue
                own_id = record.get(SETTINGS_ID)
                if not isinstance(own_id, str) or own_id not in settings:
                    raise LineError("no line before it has its settings")
                run = parse_record(record, settings[own_id])
                identity = run.key, run.texts_id
                if unique and identity in seen:
                    continue
                seen.add(identity)
                yield run
        except LineError as error:
            raise ResultsError(
                f"{name}, line {number}, is not a record of particles: {error}. Repair "
                "or remove the file."
            ) from error
    if is_missing:
        raise ResultsError(
            f"There is no file of particles for {place}: they were not kept (--keep "
            "none), or moved elsewhere."
        )


def _sources(place: Place) -> Iterator[tuple[Place, Iterator[bytes]]]:
    if isinstance(place, Path):
        paths = [place] if place.name.endswith(".gz") else particle_files(place)
        for path in paths:
            yield path, _local_lines(path)
        return
    folder = str(particles_place(place))
    system, root = file_system(folder)
    with typed_errors(folder):
        try:
            names = sorted(str(name) for name in system.ls(root, detail=False))
        except FileNotFoundError:
            return
        for name in names:
            if name.endswith(".gz"):
                yield name, decompressed_lines(BytesView(system.cat_file(name)))


def _local_lines(path: Path) -> Iterator[bytes]:
    try:
        check_regular(path)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            view = FileView(descriptor, os.fstat(descriptor).st_size)
            yield from decompressed_lines(view)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ResultsError(describe_error(error, path)) from error
