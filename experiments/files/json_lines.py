"""Lines of JSON objects in a file of unknown content, read one at a time.

The file may be any file of the user, so that a line is bounded in length, and its
content in nesting, encoding and numbers. Nothing is read as a whole.
"""

import abc
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

MAX_LINE = 2**24
"""Bytes of the longest line; no row of results is nearly as long."""

CHUNK = 2**20

MAX_COUNT = 2**53
MAX_FLOAT = int(sys.float_info.max)


class LineError(ValueError):
    """A line that is too long, or not of the kind that the file contains."""


class FileView(NamedTuple):
    """Positioned reads of an open file, which leave its offset alone.

    Args:
        descriptor: of the file.
        size: bytes that count; what follows them is not read.
    """

    descriptor: int
    size: int

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, fewer if the file has become shorter."""
        parts = []
        stop = min(stop, self.size)
        while start < stop:
            part = os.pread(self.descriptor, min(stop - start, CHUNK), start)
            if not part:
                break
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def lines(self) -> Iterator[bytes]:
        """All lines without their newlines; the last one may lack it in the file.

        Raises:
            LineError: a line is too long.
        """
        rest = b""
        for start in range(0, self.size, CHUNK):
            first, *others = self.read(start, start + CHUNK).split(b"\n")
            rest += first
            if len(rest) > MAX_LINE:
                raise LineError(f"a line has more than {MAX_LINE:,} bytes")
            if others:
                yield rest
                *lines, rest = others
                yield from lines
        if rest:
            yield rest

    def last_lines(self, count: int) -> list[tuple[int, bytes]]:
        """The last lines with their newlines, and where they begin.

        Args:
            count: of lines; fewer are returned if the file has fewer.

        Raises:
            LineError: one of them is too long.
        """
        window = 2**16
        while True:
            start = max(0, self.size - window)
            # Not splitlines(), which would also split at \r.
            *lines, last = self.read(start, self.size).split(b"\n")
            lines = [line + b"\n" for line in lines] + [last] * bool(last)
            if any(len(line) > MAX_LINE for line in lines[-count:]):
                raise LineError(f"a line has more than {MAX_LINE:,} bytes")
            if start == 0 or len(lines) > count:
                break
            window *= 2
        end, newest_lines = self.size, []
        for line in reversed(lines[-count:]):
            end -= len(line)
            newest_lines.append((end, line))
        return newest_lines[::-1]


class BytesView(NamedTuple):
    """Positioned reads of bytes, as `FileView` has them of a file."""

    content: bytes

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.content)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`."""
        return self.content[start:stop]


class Ending(NamedTuple):
    """Where the valid part of a file ends.

    Attributes:
        size: its bytes; what follows them is incomplete.
        suffix: bytes that complete it, such as a last newline.
    """

    size: int
    suffix: bytes = b""


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC):
    """What an append-only file of JSON objects holds, and where its valid part ends.

    Attributes:
        kind: of file, for messages.
        record: what it consists of, for messages.
        check: raises a LineError for an object that the file would not hold.
        beginnings: with one of which every line begins.
    """

    kind: str
    record: str
    check: Callable[[dict[str, Any]], object] = bool
    beginnings: tuple[bytes, ...] = (b"{",)

    @abc.abstractmethod
    def find_end(self, view: FileView) -> Ending:
        """The end of the complete records, once the file is known to be of this kind.

        Raises:
            LineError: it is another kind of file.
        """

    def is_beginning(self, line: bytes) -> bool:
        """Whether a line, which may be incomplete, begins like those of this file."""
        line = line.rstrip(b"\n")
        return any(b.startswith(line) or line.startswith(b) for b in self.beginnings)


@dataclasses.dataclass(frozen=True)
class JsonLines(Layout):
    """An append-only file of JSON lines."""

    kind: str = "file of JSON lines"
    record: str = "line"

    def find_end(self, view: FileView) -> Ending:
        """The end of the complete lines of a file, once it is known to be of this kind.

        Its first line and its last complete line are checked. A valid last line without
        its newline is complete. The last line may be incomplete or damaged, that is,
        not JSON. If it is the only line, it must begin like the lines of this file.

        Raises:
            LineError: it is another kind of file.
        """
        if view.size == 0:
            return Ending(0)
        *before, (start, last) = view.last_lines(2)
        try:
            self.check(parse_object(last))
            ending = Ending(view.size, b"" if last.endswith(b"\n") else b"\n")
        except LineError as error:
            if is_json(last) or not (before or self.is_beginning(last)):
                raise LineError(f"its last line is invalid: {error}") from error
            ending = Ending(start)
        if before and ending.size == start:
            self._check_line("the line before its last one", before[0][1])
        for line in FileView(view.descriptor, ending.size).lines():
            self._check_line("its first line", line)
            break
        return ending

    def _check_line(self, name: str, line: bytes) -> None:
        try:
            self.check(parse_object(line))
        except LineError as error:
            raise LineError(f"{name} is invalid: {error}") from error


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse a line of JSON that must be an object of finite numbers, in UTF-8.

    Raises:
        LineError: it is not.
    """
    try:
        value = json.loads(line.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise LineError("it is not UTF-8") from error
    except RecursionError as error:
        raise LineError("it is nested too deeply") from error
    except LineError:
        raise
    except ValueError as error:
        raise LineError(f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise LineError("it is not an object")
    return value


def is_finite_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold, which 1e999 is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Integers of JSON have any length; one beyond all floats cannot be converted.
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= MAX_FLOAT


def is_count(value: object, least: int = 0) -> bool:
    """Whether a JSON value is an integer from `least` that floats hold exactly."""
    return type(value) is int and least <= value <= MAX_COUNT


def is_json(line: bytes) -> bool:
    """Whether a line is valid JSON; an incomplete line is not."""
    try:
        json.loads(line)
    except ValueError:
        return False
    except RecursionError:
        # Whatever it is, an interrupted write did not make it.
        return True
    return True


def without_half_line(lines: Iterable[bytes]) -> Iterator[bytes]:
    """All lines but an incomplete last one, which another process may be writing."""
    previous_line: bytes | None = None
    for line in lines:
        if previous_line is not None:
            yield previous_line
        previous_line = line
    if previous_line is not None and is_json(previous_line):
        yield previous_line


def _refuse_constant(name: str) -> None:
    raise LineError(f"{name} is not JSON")
