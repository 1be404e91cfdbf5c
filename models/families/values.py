"""Values of a ``config.json`` by their type: flags, numbers, tables.

JSON's null counts as an absent field. Every other value counts as it is: zero is not
replaced by the default.
"""

from collections.abc import Mapping
from typing import Any

from tsi.errors import CheckpointError

MIN_NUMBER, MAX_NUMBER = 1e-12, 1e15
"""Range of numbers other than sizes. Numbers outside are damage, or zero in float32."""


def read_flag(fields: Mapping[str, Any], name: str) -> bool:
    """A boolean field; False if it is absent or null.

    Raises:
        CheckpointError: the value is neither true nor false.
    """
    value = fields.get(name)
    if value not in (True, False, None):
        raise CheckpointError(
            f"config.json has {name}={value!r}, which is neither true nor false. "
            "Correct it, or choose another checkpoint."
        )
    return bool(value)


def read_number(
    fields: Mapping[str, Any], name: str, default: float | int | None
) -> float:
    """A positive number; the default if the field is absent or null.

    Args:
        fields: of config.json, or a table in it.
        name: of the field.
        default: None if the field is required.

    Raises:
        KeyError: the field is absent and required.
        CheckpointError: the value is not a number from MIN_NUMBER to MAX_NUMBER.
    """
    value = fields.get(name)
    if value is None:
        if default is None:
            raise KeyError(name)
        return float(default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not MIN_NUMBER <= value <= MAX_NUMBER:
        raise CheckpointError(
            f"config.json has {name}={repr(value)[:50]}, which is not a positive "
            f"number from {MIN_NUMBER:g} to {MAX_NUMBER:g}. Correct it, or choose "
            "another checkpoint."
        )
    return float(value)


def read_table(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A nested table of fields; empty if it is absent or null.

    Raises:
        CheckpointError: the value is not a JSON object.
    """
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(
            f"config.json has {name}={str(value)[:50]}, which is not a table of "
            "fields. Correct it, or choose another checkpoint."
        )
    return value
