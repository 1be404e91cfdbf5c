"""Read a server's JSON, which is not trusted: check types, ranges and sizes."""

import math
import reprlib
from typing import Any

from tsi.errors import ServerError

MAX_ID = 2**31
MAX_NUMBER = 1e300


def field(reply: Any, *names: str | int) -> Any:
    """The value at a path of names in a reply.

    Raises:
        ServerError: it is missing.
    """
    value = reply
    for name in names:
        try:
            value = value[name]
        except (KeyError, IndexError, TypeError) as error:
            path = "/".join(map(str, names))
            raise ServerError(
                f"The server's reply lacks {path}; it has {shape_of(reply)}. It is "
                "another kind of server, or another version, than it seemed."
            ) from error
    return value


def count(reply: Any, *names: str) -> int:
    """The count at a path of names in a reply; 0 if the server does not give it.

    Raises:
        ServerError: the value is not a count.
    """
    value = reply
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return 0 if value is None else integer(value, names[-1])


def show(value: Any) -> str:
    """A short form of a value of any size or depth, for a message."""
    return f"{reprlib.repr(value):.80}"


def number(value: Any, what: str) -> float:
    """A finite number, or minus infinity.

    Raises:
        ServerError: the value is not valid.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer in JSON may be too large for a float.
    if not is_number or not -math.inf <= value <= MAX_NUMBER:
        raise ServerError(
            f"The server's {what} is {show(value)}; it must be a finite number."
        )
    return float(max(value, -MAX_NUMBER)) if value != -math.inf else value


def log_probability(value: Any, what: str) -> float:
    """A log-probability: a number of at most zero, up to rounding.

    Raises:
        ServerError: the value is not valid.
    """
    log_p = number(value, what)
    if log_p > 1e-3:
        raise ServerError(f"The server's {what} is {log_p}, above 0.")
    return min(log_p, 0.0)


def integer(value: Any, what: str, limit: int = MAX_ID) -> int:
    """An integer from 0 to below a limit.

    Raises:
        ServerError: the value is not valid.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < limit:
        raise ServerError(
            f"The server's {what} is {show(value)}; it must be a whole number from 0 "
            f"to {limit - 1}."
        )
    return value


def token_ids(
    value: Any, max_ids: int, what: str = "list of tokens"
) -> tuple[int, ...]:
    """A list of at most `max_ids` token ids.

    Raises:
        ServerError: the value is not valid.
    """
    if not isinstance(value, list) or len(value) > max_ids:
        size = f", {len(value)} long" if isinstance(value, list) else ""
        raise ServerError(
            f"The server's {what} is {type(value).__name__}{size}; it must be a list "
            f"of at most {max_ids} ids."
        )
    if value and not (set(map(type, value)) == {int} and min(value) >= 0):
        value = [integer(item, "token id") for item in value]
    if value and max(value) >= MAX_ID:
        integer(max(value), "token id")
    return tuple(value)


def string(value: Any, what: str, max_length: int = 2**22) -> str:
    """A text of bounded length, without lone surrogates.

    Raises:
        ServerError: the value is not valid.
    """
    if not isinstance(value, str) or len(value) > max_length:
        raise ServerError(
            f"The server's {what} is {type(value).__name__} {show(value)}; it must be "
            f"a text of at most {max_length:,} characters."
        )
    return value.encode("utf-8", "replace").decode()


def choices(reply: Any, name: str, count: int) -> list[Any]:
    """The choices of a reply in the order of their index.

    Raises:
        ServerError: there are not `count` of them, each with its own index.
    """
    entries = field(reply, name)
    if not isinstance(entries, list) or len(entries) != count:
        size = len(entries) if isinstance(entries, list) else type(entries).__name__
        raise ServerError(f"The server sent {size} choices; {count} were requested.")
    by_index = {integer(field(c, "index"), "index", count): c for c in entries}
    if len(by_index) != count:
        raise ServerError("The server's choices do not have one index each.")
    return [by_index[index] for index in range(count)]


def shape_of(reply: Any) -> str:
    """A description of the fields of a reply, for a message."""
    if isinstance(reply, dict):
        return "the fields " + ", ".join(name[:40] for name in sorted(reply)[:12])
    return f"the type {type(reply).__name__}"
