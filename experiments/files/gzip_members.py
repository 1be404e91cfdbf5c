"""Lines in a file of gzip members, one member for each append.

A file of several members is a gzip file, which every program for such files reads as
one. A kill leaves at most an incomplete last member. The file may be any file of the
user: it is decompressed a piece at a time, and its lines are bounded in length.
"""

import dataclasses
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from tsi.experiments.files.json_lines import (
    CHUNK,
    BytesView,
    Ending,
    FileView,
    Layout,
    LineError,
    parse_object,
)

MAX_RECORD = 2**28
"""Bytes of the longest line, decompressed: a few thousand solutions."""

GZIP = 16 + zlib.MAX_WBITS
"""The window of zlib for the format of gzip."""


def compress_member(data: bytes) -> bytes:
    """One member with these bytes; the same for the same bytes."""
    compressor = zlib.compressobj(6, wbits=GZIP)
    return compressor.compress(data) + compressor.flush()


START = compress_member(b"")[:8]
"""The bytes with which every member begins."""


class Piece(NamedTuple):
    """Some bytes of a member.

    Attributes:
        content: decompressed.
        end: where the member ends in the file, if it ends with them; otherwise None.
    """

    content: bytes
    end: int | None


class DamagedMemberError(LineError):
    """A member that is incomplete or damaged.

    Args:
        start: where it begins in the file.
        is_last: whether no member begins after it.
    """

    def __init__(self, start: int, is_last: bool) -> None:
        super().__init__(f"it is damaged between byte {start:,} and its end")
        self.start, self.is_last = start, is_last


def decompress(view: FileView | BytesView) -> Iterator[Piece]:
    """All members of a file, a piece at a time.

    Raises:
        DamagedMemberError: a member is incomplete or damaged.
    """
    start = 0
    while start < view.size:
        position, decompressor = start, zlib.decompressobj(wbits=GZIP)
        while not decompressor.eof:
            data = decompressor.unconsumed_tail
            if not data:
                data = view.read(position, position + CHUNK)
                position += len(data)
            try:
                content = decompressor.decompress(data, CHUNK)
            except zlib.error as error:
                raise DamagedMemberError(start, _is_last(view, start)) from error
            if not data and not content and not decompressor.eof:
                raise DamagedMemberError(start, _is_last(view, start))
            end = None
            if decompressor.eof:
                end = start = position - len(decompressor.unused_data)
            yield Piece(content, end)


def decompressed_lines(view: FileView | BytesView) -> Iterator[bytes]:
    """The lines of all members, without their newlines.

    An incomplete last member, which another process may be writing, ends them.

    Raises:
        LineError: a line is too long, or a member is damaged.
    """
    rest = bytearray()
    pieces = decompress(view)
    while True:
        try:
            piece = next(pieces, None)
        except DamagedMemberError as error:
            if error.is_last:
                return
            raise
        if piece is None:
            break
        *lines, last = piece.content.split(b"\n")
        for line in lines:
            yield bytes(rest + line)
            rest.clear()
        rest += last
        if len(rest) > MAX_RECORD:
            raise LineError(f"a line has more than {MAX_RECORD:,} bytes")
    if rest:
        yield bytes(rest)


@dataclasses.dataclass(frozen=True)
class GzipMembers(Layout):
    """An append-only file of gzip members, which hold lines of JSON objects."""

    record: str = "gzip member"

    def find_end(self, view: FileView) -> Ending:
        """The end of the complete members, once the file is known to be of this kind.

        Every member is decompressed, and the first line is checked. The last member may
        be incomplete.

        Raises:
            LineError: it is another kind of file, or a member before the last is
                damaged.
        """
        if view.size == 0:
            return Ending(0)
        end, text, is_checked = 0, b"", False
        try:
            for piece in decompress(view):
                if not is_checked:
                    text += piece.content
                    line, newline, _ = text.partition(b"\n")
                    if not self.is_beginning(line) or len(text) > MAX_RECORD:
                        raise LineError("its first line is invalid")
                    if newline:
                        self.check(parse_object(line))
                        is_checked, text = True, b""
                end = end if piece.end is None else piece.end
        except DamagedMemberError as error:
            start = view.read(error.start, error.start + len(START))
            # A file system may leave zeros where the system lost power.
            is_own = START.startswith(start) or (error.start and not any(start))
            if not (error.is_last and is_own):
                raise
            return Ending(error.start)
        if not is_checked:
            raise LineError("it has no lines")
        return Ending(end)


def _is_last(view: FileView | BytesView, start: int) -> bool:
    """Whether no member begins after the one that begins here."""
    overlap = b""
    for position in range(start + 1, view.size, CHUNK):
        data = overlap + view.read(position, position + CHUNK)
        if START in data:
            return False
        overlap = data[1 - len(START) :]
    return True
