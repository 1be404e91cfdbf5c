"""Refuse arguments that are not numbers."""

from numbers import Real
from typing import Any

from tsi.errors import ConfigurationError


def check_numbers(owner: str, **arguments: Any) -> None:
    """Refuse arguments that are not single numbers; arrays of no dimension are numbers.

    Args:
        owner: subject of the error's sentence: what has the arguments.
        arguments: by name.

    Raises:
        ConfigurationError: one of them is not a number.
    """
    for name, value in arguments.items():
        is_number = isinstance(value, Real) or getattr(value, "shape", None) == ()
        if not is_number:
            raise ConfigurationError(
                f"{owner} has {name}={repr(value)[:60]}, which is not a number. Give "
                f"{name} one number."
            )
