"""Results on disk: one JSON line for each (method, budget, seed, problem).

Rows are appended and flushed to disk as they finish, so that a killed run, or one whose
disk is full, loses at most the block that it was computing (`append_only.py`). An
incomplete last line is dropped with a message, and its row is computed again. Every row
records the settings on which it depends; a file with other settings is refused. All of
a row but `seconds` is a function of these settings, so that a resumed file equals one
of a run without interruption.

If there are several processes, each writes one shard and reads all (`row_shards.py`).
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tsi.errors import ResultsError
from tsi.experiments.places import Place
from tsi.experiments.scaling.row_shards import open_shards, read_shards

# Recorded, but may change before a run is resumed.
FREE_SETTINGS = frozenset({"commit"})


class Cell(NamedTuple):
    """The key of a row."""

    method: str
    budget: int
    seed: int
    problem: int | str


class ResultsFile:
    """An append-only file of rows, locked against a second writer.

    Args:
        path: of the JSONL file; missing folders are created. An address with a scheme
            is not locked.
        settings: on which every row depends; JSON types only.
        method_settings: further settings of each method.
        index, count: index of this process, and number of processes that write rows.

    Raises:
        ResultsError: the file is malformed, has other settings, is being written by
            another run, or cannot be opened.
    """

    def __init__(
        self,
        path: Place,
        settings: dict[str, Any],
        method_settings: Mapping[str, dict[str, Any]] | None = None,
        *,
        index: int = 0,
        count: int = 1,
    ) -> None:
        # Through JSON, so that tuples become lists as in the file.
        self.settings = json.loads(json.dumps(settings))
        self.method_settings = json.loads(json.dumps(method_settings or {}))
        self.rows: dict[Cell, dict[str, Any]] = {}
        self._others: list[bytes] = []
        self._shards = open_shards(path, index, count)
        self.path = self._shards.path
        try:
            self.reload()
        except BaseException:
            self._shards.close()
            raise

    def append(self, rows: Iterable[tuple[Cell, dict[str, Any]]]) -> None:
        """Write rows and flush them to disk; write all of them or none.

        Raises:
            ResultsError: a row exists already, or the system cannot write.
        """
        rows = list(rows)
        lines = []
        for cell, outcome in rows:
            if cell in self.rows:
                raise ResultsError(f"{self.path} already holds a row for {cell}.")
            row = {**cell._asdict(), **outcome, "settings": self._settings(cell)}
            # NaN is not JSON, and other programs could not read it.
            lines.append(json.dumps(row, allow_nan=False) + "\n")
        self._shards.append("".join(lines).encode())
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
        self.rows, self._others = {}, []
        self._load(self.path, self._shards.read())
        for path, content in self._shards.read_others():
            self._load(path, content, self._others)

    def fold(self) -> None:
        """Read all shards again, and collect their rows in one file.

        Raises:
            ResultsError: see `reload`, or the system cannot write; no row is lost.
        """
        self.reload()
        self._shards.fold(b"".join(self._others))
        self._others = []

    def close(self) -> None:
        """Release the file."""
        self._shards.close()

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settings(self, cell: Cell) -> dict[str, Any]:
        return self.settings | self.method_settings.get(cell.method, {})

    def _load(
        self, path: Place, content: bytes, others: list[bytes] | None = None
    ) -> None:
        """Add rows; rows of other processes that are already known are skipped."""
        for number, line, cell, row in _parsed(path, content):
            _check_settings(path, number, self._settings(cell), row.pop("settings"))
            if cell in self.rows:
                if others is not None:
                    continue
                raise ResultsError(f"{path}, line {number}, repeats {cell}.")
            self.rows[cell] = row
            if others is not None:
                others.append(line)


def known_cells(
    path: Place,
    settings: dict[str, Any],
    method_settings: Mapping[str, dict[str, Any]] | None = None,
) -> set[Cell]:
    """Cells that a run would not compute again; the file is read without a lock.

    Args:
        path: of the file of rows, which need not exist.
        settings, method_settings: of the run; see `ResultsFile`.

    Raises:
        ResultsError: the run could not continue the file; see `ResultsFile`. Another
            run may be writing it.
    """
    settings = json.loads(json.dumps(settings))
    method_settings = json.loads(json.dumps(method_settings or {}))
    cells: set[Cell] = set()
    for name, content in read_shards(path):
        for number, _, cell, row in _parsed(name, content):
            expected = {**settings, **method_settings.get(cell.method, {})}
            _check_settings(name, number, expected, row["settings"])
            if cell in cells and name == path:
                raise ResultsError(f"{name}, line {number}, repeats {cell}.")
            cells.add(cell)
    return cells


def read_rows(path: Place) -> dict[Cell, dict[str, Any]]:
    """Rows of all shards of a file, with their settings; read without a lock.

    Raises:
        ResultsError: the file is missing or malformed, or cannot be read.
    """
    shards = read_shards(path)
    if not shards:
        raise ResultsError(f"There is no results file {path}; run `tsi scale` first.")
    rows: dict[Cell, dict[str, Any]] = {}
    for name, content in shards:
        for _, _, cell, row in _parsed(name, content):
            rows.setdefault(cell, row)
    return rows


def check_complete(path: Place, rows: dict[Cell, Any], cells: Sequence[Cell]) -> None:
    """Raise ResultsError unless every cell has a row."""
    missing = [cell for cell in cells if cell not in rows]
    if missing:
        raise ResultsError(
            f"{path} lacks {len(missing)} of {len(cells)} rows, the first for "
            f"{missing[0]}; run the same command again to finish them."
        )


def _parsed(
    path: Place, content: bytes
) -> Iterator[tuple[int, bytes, Cell, dict[str, Any]]]:
    """Number, bytes, cell and row of each line of a shard."""
    for number, line in enumerate(io.BytesIO(content), start=1):
        try:
            row = json.loads(line)
            cell = Cell(*(row.pop(field) for field in Cell._fields))
            row["settings"].items()
            hash(cell)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(
                f"{path}, line {number}, is not a row of results ({error!r}); "
                "repair or remove the line."
            ) from error
        yield number, line, cell, row


def _check_settings(
    path: Place,
    number: int,
    expected: dict[str, Any],
    recorded: dict[str, Any],
) -> None:
    differences = _differences(expected, recorded)
    if differences:
        raise ResultsError(
            f"{path}, line {number}, was made with other settings: "
            f"{'; '.join(differences)}. Choose another output folder or the same "
            "settings."
        )


def _differences(expected: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """A text for each setting that differs."""
    names = sorted((expected.keys() | recorded.keys()) - FREE_SETTINGS)
    pairs = [(recorded.get(x, "absent"), expected.get(x, "absent")) for x in names]
    return [
        f"{name} is {old!r} there, {new!r} now"
        for name, (old, new) in zip(names, pairs, strict=True)
        if old != new
    ]
