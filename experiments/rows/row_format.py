"""The format of a file of rows: lines with settings, and lines with rows.

A line with settings is ``{"settings_id": ID, "settings": {...}}``, and a row refers to
its settings by the same ID, a hash of their content::

    {"settings_id": "0f3a5c7e9b1d", "settings": {"task": "chain", ...}}
    {"method": "smc", "budget": 4, ..., "correct": true, "settings_id": "0f3a5c7e9b1d"}

Settings come before the first row that refers to them, in the same file. Files can be
concatenated, so the same settings may occur several times. Rows may also contain their
settings, under ``settings``. Everything is checked when it is read, because a file may
have been cut, edited, or be another program's.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tsi.errors import ConfigurationError, ResultsError, TsiError
from tsi.experiments.files.json_lines import (
    JsonLines,
    LineError,
    is_count,
    is_finite_number,
    parse_object,
)
from tsi.experiments.files.places import Place
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.methods import get_method

SETTINGS_ID, SETTINGS = "settings_id", "settings"
TEXTS_ID = "texts_id"
"""Field of a row with the hash of the texts from which it was computed, kept or not."""


TEXTS = frozenset({"prompt", "answer", TEXTS_ID})
OPTIONAL_TEXTS = frozenset({"selected"})
COUNTS = frozenset(
    {
        "num_answered",
        "num_right",
        "num_ungraded",
        "unique_eves",
        "num_distinct",
        "num_steps",
        "rollouts",
        "num_recoveries",
        "num_invalid",
        "num_truncated",
        "num_thinking",
        "generated_tokens",
        "reward_tokens",
        "sent_tokens",
        "cached_tokens",
        "retokenized_steps",
    }
)
NUMBERS = frozenset(
    {
        "expected_correct",
        "probability",
        "right_probability",
        "unanswered",
        "mean_reward",
        "reward_spread",
        "log_evidence",
        "log_evidence_variance",
        "pareto_k",
        "min_ess",
        "acceptance_rate",
        "flops",
        "seconds",
    }
)
"""Fields that a row may have, by type; null stands for a number that is not finite."""


class Line(NamedTuple):
    """A row in a file.

    Attributes:
        number: of the line, from 1.
        content: its bytes without the newline.
        cell: the key of the row.
        row: its other fields, without the settings and their id.
        settings_id: of its settings.
        settings: the same object for all rows with these settings.
        is_inline: whether the row holds them itself.
    """

    number: int
    content: bytes
    cell: Cell
    row: dict[str, Any]
    settings_id: str
    settings: dict[str, Any]
    is_inline: bool


def canonical_json(value: Any) -> str:
    """The JSON text of a value, independent of the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def id_of_settings(settings: dict[str, Any]) -> str:
    """The hash by which rows refer to their settings.

    Raises:
        LineError: they are nested too deeply, or have numbers that are not finite.
    """
    try:
        text = canonical_json(settings)
    except (ValueError, RecursionError) as error:
        raise LineError(f"its settings cannot be written as JSON ({error})") from error
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_line(settings: dict[str, Any]) -> bytes:
    """The line of a file with these settings."""
    line = {SETTINGS_ID: id_of_settings(settings), SETTINGS: settings}
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def as_json(settings: Any) -> Any:
    """Settings as they come back from a file, with lists for tuples.

    Raises:
        ConfigurationError: they have values that are not JSON.
    """
    try:
        return json.loads(json.dumps(settings, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"Settings are recorded as JSON, and these cannot be ({error}); use texts, "
            "finite numbers, booleans, None, lists and dictionaries."
        ) from error


def parse_rows(
    path: Place,
    lines: Iterable[bytes],
    settings_by_id: dict[str, dict[str, Any]] | None = None,
) -> Iterator[Line]:
    """The rows of a file.

    Args:
        path: of the file, for messages.
        lines: without their newlines.
        settings_by_id: gets the settings that are on separate lines, by their ids.

    Raises:
        ResultsError: a line is neither a row nor settings; the message has its number.
    """
    settings_by_id = {} if settings_by_id is None else settings_by_id
    inline: dict[str, dict[str, Any]] = {}
    for number, content in enumerate(lines, start=1):
        try:
            line = parse_object(content)
            if is_settings_line(line):
                name, settings = parse_settings(line)
                settings_by_id.setdefault(name, settings)
                continue
            cell, row = check_row(line)
            is_inline = SETTINGS in row
            if is_inline:
                settings = row.pop(SETTINGS)
                name = id_of_settings(settings)
                settings = inline.setdefault(name, settings)
            else:
                name = row.pop(SETTINGS_ID)
                if name not in settings_by_id:
                    raise LineError(f"no line before it has its settings, {name!r}")
                settings = settings_by_id[name]
        except LineError as error:
            raise ResultsError(
                f"{path}, line {number}, is not a row of results: {error}. Repair or "
                "remove the line."
            ) from error
        yield Line(number, content, cell, row, name, settings, is_inline)


def is_settings_line(line: dict[str, Any]) -> bool:
    """Whether a line holds settings and no row."""
    return SETTINGS in line and "method" not in line


def parse_settings(line: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The id and the settings of a line with settings.

    Raises:
        LineError: they are malformed, or the id is not that of the settings.
    """
    name, settings = line.get(SETTINGS_ID), line[SETTINGS]
    if not isinstance(settings, dict) or not isinstance(name, str):
        raise LineError("its settings have no id, or are not an object")
    right = id_of_settings(settings)
    if name != right:
        raise LineError(
            f"its settings are not those of their id: they have {right!r}, and the "
            f"line says {name!r}, so one of them was changed"
        )
    return name, settings


def check_row(line: dict[str, Any]) -> tuple[Cell, dict[str, Any]]:
    """The key and the other fields of a row.

    Raises:
        LineError: a field is missing or has another type, or there is no such method.
    """
    # Interned, since every row has the same names, methods and prompts.
    row = {sys.intern(name): _intern(value) for name, value in line.items()}
    fields: dict[str, Any] = {name: row.pop(name, None) for name in Cell._fields}
    missing = [name for name, value in fields.items() if value is None]
    if missing or "correct" not in row or not (SETTINGS in row or SETTINGS_ID in row):
        names = [*missing, *({"correct", SETTINGS_ID} - row.keys())]
        raise LineError(f"it lacks {', '.join(sorted(names))}")
    cell = Cell(**fields)
    _check_cell(cell)
    for name, value in row.items():
        if not _has_type(name, value):
            raise LineError(f"its field {name!r} cannot be {_shorten(value)}")
    return cell, row


def _check_cell(cell: Cell) -> None:
    for name, minimum in (("budget", 1), ("seed", 0)):
        value = getattr(cell, name)
        if not is_count(value, minimum):
            raise LineError(f"its {name} cannot be {_shorten(value)}")
    if isinstance(cell.problem, bool) or not isinstance(cell.problem, int | str):
        raise LineError(f"its problem cannot be {_shorten(cell.problem)}")
    if not isinstance(cell.method, str):
        raise LineError(f"its method cannot be {_shorten(cell.method)}")
    try:
        get_method(cell.method)
    except TsiError as error:
        raise LineError(
            f"there is no method {_shorten(cell.method)}; it was renamed, or its "
            "module must be imported first"
        ) from error


def _has_type(name: str, value: object) -> bool:
    if name == "correct":
        return isinstance(value, bool)
    if name in TEXTS:
        return isinstance(value, str)
    if name in OPTIONAL_TEXTS:
        return value is None or isinstance(value, str)
    if name in COUNTS:
        return is_count(value)
    if name in NUMBERS:
        return value is None or is_finite_number(value)
    if name == SETTINGS:
        return isinstance(value, dict)
    if name == SETTINGS_ID:
        return isinstance(value, str)
    return True


def _intern(value: object) -> object:
    return sys.intern(value) if type(value) is str else value


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_line(line: dict[str, Any]) -> None:
    if is_settings_line(line):
        parse_settings(line)
    else:
        check_row(line)


ROWS = JsonLines(
    "file of results",
    "line",
    _check_line,
    (b'{"method": "', b'{"settings_id": "'),
)
"""How `files/append_only.py` recognises a file of rows."""
