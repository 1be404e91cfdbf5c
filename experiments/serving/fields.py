"""Fields of a JSON object of unknown origin, by their types."""

import math
from collections.abc import Mapping
from typing import Any

from tsi.experiments.serving.api_error import ApiError
from tsi.experiments.serving.conversation import SEPARATOR


def name_type(value: Any) -> str:
    """The JSON type of a value, for a sentence.

    >>> name_type(None), name_type(True), name_type([])
    ('null', 'a boolean', 'an array')
    """
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def integer(
    fields: Mapping[str, Any], name: str, low: int, high: int, *, prefix: str = ""
) -> int | None:
    """A whole number within bounds; None if it is missing or null.

    Args:
        fields: of the object.
        name: of the field.
        low, high: bounds, both allowed.
        prefix: of the name in messages, such as "tsi.".

    Raises:
        ApiError: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise ApiError(
            f"{prefix}{name} must be a whole number, not {name_type(value)}"
            f"{' with a fraction or exponent' if type(value) is float else ''}.",
            param=prefix + name,
        )
    if not low <= value <= high:
        raise ApiError(
            f"{prefix}{name} must be between {low} and {high}.", param=prefix + name
        )
    return value


def number(
    fields: Mapping[str, Any], name: str, low: float, high: float
) -> float | None:
    """A number within bounds, as a float; None if it is missing or null.

    Raises:
        ApiError: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise ApiError(f"{name} must be a number, not {name_type(value)}.", param=name)
    if not low <= value <= high or not math.isfinite(value):
        raise ApiError(f"{name} must be between {low:g} and {high:g}.", param=name)
    return float(value)


def boolean(fields: Mapping[str, Any], name: str, *, prefix: str = "") -> bool:
    """True or False; False if it is missing or null.

    Raises:
        ApiError: it is something else.
    """
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(
            f"{prefix}{name} must be true or false, not {name_type(value)}.",
            param=prefix + name,
        )
    return bool(value)


def string(fields: Mapping[str, Any], name: str, *, prefix: str = "") -> str | None:
    """A string of Unicode characters; None if it is missing or null.

    Raises:
        ApiError: it is something else.
    """
    value = fields.get(name)
    if value is None:
        return None
    return check_text(value, prefix + name)


def check_text(value: Any, name: str) -> str:
    """A text, unless it has half a character or the separator of turns.

    Raises:
        ApiError: see above, or the value is not a string.
    """
    if not isinstance(value, str):
        raise ApiError(f"{name} must be a string, not {name_type(value)}.", param=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ApiError(
            f"{name} has a surrogate, which is half a character, at character "
            f"{error.start + 1}.",
            param=name,
        ) from None
    if SEPARATOR in value:
        raise ApiError(
            f"{name} has the control character U+001E; remove it.", param=name
        )
    return value
