"""Results on disk: one JSON line for each (method, budget, seed, problem).

Rows are appended and flushed to disk as they finish, so that a killed run, or one whose
disk is full, loses no row that has been written (`files/append_only.py`). An incomplete
last line is moved to another file with a message, and its row is computed again. Every
row refers to its settings, which are in the file once (`row_format.py`); a file with
other settings is refused (`settings_check.py`).

The key of a row, (method, budget, seed, problem), is called a cell. Up to rounding, a
row depends only on its cell and settings, and so do its random numbers. XLA sums in a
different order in batches of another shape, and numbers such as the mean reward and the
log evidence then differ by a few millionths. A resumed file, or one with more problems,
therefore agrees with an uninterrupted run to that precision, with the same texts,
answers and counts, unless two candidates for a token are tied to that precision.
Batches of equal shape give equal rows. `seconds` is measured.

If there are several processes, each writes one shard and reads all (`row_shards.py`).
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tsi.errors import ResultsError
from tsi.experiments.files.places import Place
from tsi.experiments.plans.cell import Cell
from tsi.experiments.rows.row_format import (
    SETTINGS,
    SETTINGS_ID,
    Line,
    id_of_settings,
    parse_rows,
    settings_line,
)
from tsi.experiments.rows.row_shards import open_shards, read_shards
from tsi.experiments.rows.settings_check import SettingsCheck

FOLD_BYTES = 2**23
"""Rows of other shards that are appended at once."""


class ResultsFile:
    """An append-only file of rows, locked against a second writer.

    Args:
        path: of the JSONL file; missing folders are created. An address with a scheme
            is not locked.
        settings: on which every row depends; JSON types only.
        method_settings: further settings of each method.
        index, count: index of this process, and number of processes that write rows.
        continue_anyway: continue rows of other versions or devices.

    Raises:
        ConfigurationError: the settings are not JSON.
        ResultsError: the file is malformed, has other settings, is being written by
            another run, or cannot be opened. It is not changed.
    """

    def __init__(
        self,
        path: Place,
        settings: Mapping[str, Any],
        method_settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        index: int = 0,
        count: int = 1,
        continue_anyway: bool = False,
    ) -> None:
        self._check = SettingsCheck(
            settings, method_settings, continue_anyway=continue_anyway
        )
        self.rows: dict[Cell, dict[str, Any]] = {}
        self._own_settings: dict[str, Any] = {}
        self._shards = open_shards(path, index, count)
        self.path = self._shards.path
        try:
            self.reload()
            self._shards.repair()
        except BaseException:
            self._shards.close()
            raise
        if index == 0:
            self._check.print_remarks(path)

    def append(self, rows: Iterable[tuple[Cell, dict[str, Any]]]) -> None:
        """Write rows and flush them to disk; write all of them or none.

        Raises:
            ResultsError: a row exists already, or the system cannot write.
        """
        rows = list(rows)
        settings_by_id = {} if self._shards.has_segments else dict(self._own_settings)
        lines = []
        for cell, outcome in rows:
            if cell in self.rows:
                raise ResultsError(f"{self.path} already holds a row for {cell}.")
            settings = self._check.settings_of(cell.method)
            name = id_of_settings(settings)
            if name not in settings_by_id:
                settings_by_id[name] = settings
                lines.append(settings_line(settings))
            row = {**cell._asdict(), **outcome, SETTINGS_ID: name}
            # NaN is not JSON, and other programs could not read it.
            lines.append(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._shards.append(b"".join(lines))
        self._own_settings = settings_by_id
        self.rows.update(rows)

    def find_missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Cells without a row, in their order."""
        return [cell for cell in cells if cell not in self.rows]

    def check_sharing(self) -> None:
        """Check that this process sees the rows of the others.

        Raises:
            ResultsError: it does not.
        """
        self._shards.check_sharing()

    def reload(self) -> None:
        """Read all shards again, with the rows that other processes have written.

        Raises:
            ResultsError: a row is malformed or has other settings.
        """
        self.rows, self._own_settings = {}, {}
        lines = self._shards.lines()
        for line in parse_rows(self.path, lines, self._own_settings):
            if line.cell in self.rows:
                raise ResultsError(
                    f"{self.path}, line {line.number}, repeats {line.cell}."
                )
            self._load(self.path, line)
        for path, lines in self._shards.other_lines():
            for line in parse_rows(path, lines):
                # A row that two processes have computed counts once.
                if line.cell not in self.rows:
                    self._load(path, line)

    def fold(self) -> None:
        """Read all shards again, and collect their rows in one file.

        Raises:
            ResultsError: see `reload`, or the system cannot write; no row is lost.
        """
        self.reload()
        self._shards.fold(self._blocks_of_others())

    def close(self) -> None:
        """Release the file."""
        self._shards.close()

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, path: Place, line: Line) -> None:
        self._check.check(path, line)
        self.rows[line.cell] = line.row

    def _blocks_of_others(self) -> Iterator[bytes]:
        """Lines of other shards that this one lacks, some megabytes at a time."""
        cells = {line.cell for line in parse_rows(self.path, self._shards.lines())}
        settings_ids = set(self._own_settings)
        block = bytearray()
        for path, lines in self._shards.reread_lines():
            for line in parse_rows(path, lines):
                if line.cell in cells:
                    continue
                cells.add(line.cell)
                if not line.is_inline and line.settings_id not in settings_ids:
                    settings_ids.add(line.settings_id)
                    block += settings_line(line.settings)
                block += line.content + b"\n"
                if len(block) > FOLD_BYTES:
                    yield bytes(block)
                    block.clear()
        if block:
            yield bytes(block)


def known_cells(
    path: Place,
    settings: Mapping[str, Any],
    method_settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    continue_anyway: bool = False,
) -> set[Cell]:
    """Cells that a run would not compute again; the file is read without a lock.

    Args:
        path: of the file of rows, which need not exist.
        settings, method_settings, continue_anyway: of the run; see `ResultsFile`.

    Raises:
        ConfigurationError: the settings are not JSON.
        ResultsError: the run could not continue the file; see `ResultsFile`. Another
            run may be writing it.
    """
    check = SettingsCheck(settings, method_settings, continue_anyway=continue_anyway)
    cells: set[Cell] = set()
    for name, lines in read_shards(path):
        for line in parse_rows(name, lines):
            check.check(name, line)
            if line.cell in cells and name == path:
                raise ResultsError(f"{name}, line {line.number}, repeats {line.cell}.")
            cells.add(line.cell)
    return cells


def read_rows(path: Place) -> dict[Cell, dict[str, Any]]:
    """Rows of all shards of a file, with their settings; read without a lock.

    Rows with the same settings share one dictionary of them, under ``settings``. A row
    that two shards have counts once, and so do equal rows of one file.

    Raises:
        ResultsError: the file is missing, empty or malformed, or cannot be read; or two
            different rows of it are of one run.
    """
    rows: dict[Cell, dict[str, Any]] = {}
    is_missing = True
    for name, lines in read_shards(path):
        is_missing = False
        own_cells: set[Cell] = set()
        for line in parse_rows(name, lines):
            line.row[SETTINGS] = line.settings
            if line.cell in own_cells and rows[line.cell] != line.row:
                raise ResultsError(
                    f"{name}, line {line.number}, has another row of {line.cell} than "
                    "a line before it. Rows of several runs can be in one file only if "
                    "no two are of one method, budget, seed and problem; keep each run "
                    "in its own folder, and name all folders after `tsi report`."
                )
            if line.cell not in rows:
                rows[line.cell] = line.row
                own_cells.add(line.cell)
    if is_missing:
        raise ResultsError(f"There is no results file {path}; run `tsi scale` first.")
    if not rows:
        raise ResultsError(no_rows(path))
    return rows


def no_rows(path: Place) -> str:
    """A sentence about a file of a run that was stopped before its first rows."""
    return (
        f"{path} has no rows yet; to finish them, run the command that began them "
        "again, such as `tsi scale`."
    )


def check_complete(path: Place, rows: dict[Cell, Any], cells: Sequence[Cell]) -> None:
    """Raise ResultsError unless every cell has a row."""
    missing = [cell for cell in cells if cell not in rows]
    if missing:
        raise ResultsError(
            f"{path} lacks {len(missing)} of {len(cells)} rows, the first for "
            f"{missing[0]}; run the same command again to finish them."
        )
