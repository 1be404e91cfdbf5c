"""Fields of a record of JSON, checked as they are taken.

Numbers that are not finite, which JSON does not have, are texts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from tsi.experiments.files.json_lines import (
    MAX_COUNT,
    LineError,
    is_count,
    is_finite_number,
)

NOT_FINITE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


class RecordFields:
    """The fields of a record, each checked as it is taken.

    Args:
        record: an object of JSON from a file of unknown content.

    Raises:
        LineError: by every method, for a field that is missing or has another type.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record

    def _get(self, name: str, is_right: Callable[[Any], bool], what: str) -> Any:
        value = self.record.get(name)
        if name not in self.record or not is_right(value):
            raise LineError(f"its field {name!r} is not {what}")
        return value

    def text(self, name: str) -> str:
        return self._get(name, _is_text, "a text")

    def optional_text(self, name: str) -> str | None:
        return self._get(name, lambda x: x is None or _is_text(x), "a text or null")

    def count(self, name: str, least: int) -> int:
        what = f"an integer from {least} to {MAX_COUNT:,}"
        return self._get(name, lambda x: is_count(x, least), what)

    def identity(self, name: str) -> int | str:
        return self._get(name, lambda x: type(x) in (int, str), "an id")

    def number(self, name: str) -> float:
        return _number(self._get(name, _is_number, "a number"))

    def table(self, name: str) -> dict[str, Any]:
        if name not in self.record:
            return {}
        return self._get(name, lambda x: isinstance(x, dict), "an object")

    def texts(self, name: str) -> list[str]:
        return self._get(name, lambda x: bool(x) and _is_list(x, _is_text), "texts")

    def optional_texts(self, name: str, size: int) -> list[str | None]:
        def is_right(x: Any) -> bool:
            return _is_list(x, lambda y: y is None or _is_text(y), size)

        return self._get(name, is_right, f"{size} texts or nulls")

    def numbers(self, name: str, size: int | None = None) -> Float[np.ndarray, "N"]:
        what = "numbers" if size is None else f"{size} numbers"
        values = self._get(name, lambda x: _is_list(x, _is_number, size), what)
        return np.array([_number(value) for value in values], np.float64)

    def flags(self, name: str, size: int) -> Bool[np.ndarray, "N"]:
        def is_right(x: Any) -> bool:
            return _is_list(x, lambda y: isinstance(y, bool), size)

        return np.array(self._get(name, is_right, f"{size} booleans"), bool)

    def matrix(self, name: str, width: int) -> Float[np.ndarray, "T N"]:
        def is_row(x: Any) -> bool:
            return _is_list(x, _is_number, width)

        rows = self._get(name, lambda x: _is_list(x, is_row), f"rows of {width}")
        values = [[_number(value) for value in row] for row in rows]
        return np.array(values, np.float64).reshape(len(rows), width)

    def step_texts(self, name: str, size: int) -> list[list[str]] | None:
        def is_right(x: Any) -> bool:
            return x is None or _is_list(x, lambda y: _is_list(y, _is_text), size)

        return self._get(name, is_right, f"{size} lists of texts")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in NOT_FINITE
    return is_finite_number(value)


def _is_list(
    value: Any, is_item: Callable[[Any], bool], size: int | None = None
) -> bool:
    if not isinstance(value, list) or size not in (None, len(value)):
        return False
    return all(map(is_item, value))


def _number(value: Any) -> float:
    return NOT_FINITE[value] if isinstance(value, str) else float(value)
