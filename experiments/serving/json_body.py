"""The JSON object of an untrusted body."""

import json
from typing import Any

from tsi.experiments.serving.api_error import ApiError


def parse_body(body: bytes) -> dict[str, Any]:
    """The object that a body writes.

    Raises:
        ApiError: it is not UTF-8 or not JSON, is nested too deeply, has NaN, an
            infinity or a number of thousands of digits, or is not an object.

    >>> parse_body(b'{"model": "m"}')
    {'model': 'm'}
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(
            f"The body is not UTF-8 at byte {error.start + 1}; write it in that "
            "encoding."
        ) from None
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ApiError(
            f"The body is not JSON: {error.msg}, line {error.lineno}, column "
            f"{error.colno}."
        ) from None
    except RecursionError:
        raise ApiError("The body is nested too deeply; write flat JSON.") from None
    except ValueError:
        # Python refuses integers of more than 4,300 digits.
        raise ApiError("The body has a number of thousands of digits.") from None
    if not isinstance(fields, dict):
        raise ApiError("The body must be a JSON object, such as {...}.")
    return fields


def _refuse_constant(name: str) -> None:
    raise ApiError(f"The body has {name}, which is not JSON; write a number.")
