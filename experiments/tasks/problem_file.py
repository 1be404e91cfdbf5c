"""Problems from a file: JSONL, JSON, CSV or Parquet, one problem per row.

A row has a question and an answer, and may have an id and anything else, which graders
find in `Problem.data`. Without a column of ids, a problem's id is the number of its
line. The whole file is read and checked before any computation, and errors name file,
line and column. The file is untrusted: its size, the length of its fields and its types
are checked.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError
from tsi.models.files import check_regular, describe_error
from tsi.problem import Problem

MAX_BYTES = 2**30
MAX_FIELD = 1_000_000
"""Characters of a question, an answer or an id."""
MAX_ID = 200

Row = tuple[int, dict[str, Any]]
"""The number of the line in the file, from 1, and the fields by column."""


class Columns(NamedTuple):
    """Names of the columns of a file.

    Attributes:
        question: the problem as the policy reads it.
        answer: the right answer.
        id: unique per row; a file without this column is numbered.
        advice: on a column that is missing.
    """

    question: str = "question"
    answer: str = "answer"
    id: str = "id"
    advice: str = (
        "Name the right one with --question-column, --answer-column or --id-column."
    )


def read_problems(path: Path, columns: Columns = Columns()) -> list[Problem]:  # noqa: B008
    """The problems of a file, in its order.

    Args:
        path: of a file whose name ends with .jsonl, .json, .csv or .parquet.
        columns: their names.

    Raises:
        ConfigurationError: the file cannot be read, has no rows, lacks a column, or a
            row has an empty question or answer, a repeated or missing id, or a field of
            a wrong type.
    """
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    has_ids: bool | None = None
    for line, fields in read_rows(path):
        place = f"{path}, line {line}"
        question = _text(fields, columns.question, place, columns.advice)
        answer = _text(fields, columns.answer, place, columns.advice)
        identity = fields.get(columns.id)
        if has_ids is None:
            has_ids = identity is not None
            if columns.id != Columns().id:
                # A column that was named by the user is not replaced by numbers.
                _text(fields, columns.id, place, columns.advice)
        if has_ids != (identity is not None):
            raise ConfigurationError(
                f"{place}, column {columns.id!r}: some rows have an id and others "
                "have none; give every row an id, or none."
            )
        name = _identity(identity, columns.id, place) if has_ids else str(line)
        if name in lines:
            raise ConfigurationError(
                f"{place}, column {columns.id!r}: the id {name!r} is that of line "
                f"{lines[name]}; give every problem its own."
            )
        lines[name] = line
        known_columns = (columns.question, columns.answer, columns.id)
        data = {
            k: v for k, v in fields.items() if k not in known_columns and v is not None
        }
        problems.append(Problem(name, question, answer, _json_types(data)))
    if not problems:
        raise ConfigurationError(f"{path} has no rows; write one problem per row.")
    return problems


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSONL, JSON, CSV or Parquet file.

    Raises:
        ConfigurationError: see `read_problems`.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigurationError(
            f"The name of {path} ends with none of {', '.join(READERS)}, which "
            "say how it is read; rename or convert it."
        )
    try:
        check_regular(path)
        if path.stat().st_size > MAX_BYTES:
            raise ConfigurationError(
                f"{path} is larger than {MAX_BYTES // 2**20} MiB; divide it."
            )
        yield from reader(path)
    except OSError as error:
        raise ConfigurationError(describe_error(error, path)) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                # A byte order mark is not part of the first field.
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ConfigurationError(
                    f"{path}, line {number}, byte {error.start + 1}, is not UTF-8; "
                    "save the file in that encoding."
                ) from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error) or type(error).__name__)
            raise ConfigurationError(
                f"{path}, line {number}, is not a JSON object ({reason}); write one "
                "object per line."
            ) from error
        if not isinstance(fields, dict):
            raise ConfigurationError(
                f"{path}, line {number}, is a JSON {type(fields).__name__} and not an "
                'object such as {"question": "1 + 1", "answer": "2"}.'
            )
        yield number, fields


def _json_rows(path: Path) -> Iterator[Row]:
    """The objects of an array, numbered from 1, or of a file of JSON lines."""
    with path.open("rb") as file:
        if not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _jsonl_rows(path)
            return
    text = "".join(line for _, line in _lines(path))
    try:
        rows = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if hasattr(error, "lineno") else ""
        reason = getattr(error, "msg", str(error) or type(error).__name__)
        raise ConfigurationError(
            f"{path}{place}, is not a JSON array of objects ({reason})."
        ) from error
    for number, fields in enumerate(rows, start=1):
        if not isinstance(fields, dict):
            raise ConfigurationError(
                f"{path}, element {number}, is a JSON {type(fields).__name__} and not "
                'an object such as {"question": "1 + 1", "answer": "2"}.'
            )
        yield number, fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _csv_rows(path: Path) -> Iterator[Row]:
    # The csv module counts lines within quoted fields; decoding is checked before it.
    text = io.StringIO("".join(line for _, line in _lines(path)), newline="")
    csv.field_size_limit(MAX_FIELD)
    reader = csv.DictReader(text, strict=True)
    line = 1
    try:
        names = reader.fieldnames or []
        repeated = [name for name in names if name and names.count(name) > 1]
        if repeated:
            raise ConfigurationError(
                f"{path}, line 1: the column {repeated[0]!r} occurs twice."
            )
        for fields in reader:
            line = reader.line_num
            # The reader puts further fields under None, and None for missing ones.
            if None in fields or None in fields.values():
                raise ConfigurationError(
                    f"{path}, line {line}, does not have the {len(names)} fields of "
                    "the first line; put fields with commas or line breaks in quotes."
                )
            # Tables are often written with a first column of numbers, or a last comma.
            yield line, {name: value for name, value in fields.items() if name}
    except csv.Error as error:
        raise ConfigurationError(
            f"{path}, line {max(line, reader.line_num)}, is not CSV ({error})."
        ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            f"Reading {path} needs the package pyarrow; install it with `pip install "
            "-e '.[tasks]'` in the clone, or convert the file to JSONL."
        ) from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield number, fields
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(
            f"{path} is not a Parquet file after row {number} ({reason})."
        ) from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
"""How a file is read, by the ending of its name."""


def _text(fields: dict[str, Any], column: str, place: str, advice: str) -> str:
    """The field of a column as text.

    Raises:
        ConfigurationError: it is missing, empty, too long or of a wrong type.
    """
    if column not in fields:
        names = ", ".join(map(repr, list(fields)[:20])) or "none"
        raise ConfigurationError(
            f"{place}: there is no column {column!r}; the columns are {names}. {advice}"
        )
    value = fields[column]
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ConfigurationError(
            f"{place}, column {column!r}: {type(value).__name__} is neither a text nor "
            "a number."
        )
    text = "" if value is None else str(value)
    if not text.strip():
        raise ConfigurationError(
            f"{place}, column {column!r}, is empty; fill it in or leave the row out."
        )
    if len(text) > MAX_FIELD:
        raise ConfigurationError(
            f"{place}, column {column!r}, has {len(text):,} characters; at most "
            f"{MAX_FIELD:,} are read."
        )
    return _check_unicode(text, column, place)


def _json_types(data: dict[str, Any]) -> dict[str, Any]:
    """The data with JSON types: dates become texts, and NaN becomes None."""
    return json.loads(json.dumps(data, default=str), parse_constant=lambda name: None)


def _check_unicode(text: str, column: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{place}, column {column!r}, has half a surrogate pair at character "
            f"{error.start + 1}; write the whole character."
        ) from error
    return text


def _identity(value: Any, column: str, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConfigurationError(
            f"{place}, column {column!r}: an id is a text or an integer, not "
            f"{type(value).__name__}."
        )
    text = str(value)
    if not text.strip() or len(text) > MAX_ID:
        raise ConfigurationError(
            f"{place}, column {column!r}: an id has 1 to {MAX_ID} characters, not "
            f"{len(text.strip())}."
        )
    return _check_unicode(text, column, place)
