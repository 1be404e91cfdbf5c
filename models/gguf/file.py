"""GGUF files: header, metadata and tensors, which are dequantised.

The header is parsed here and every length in it is checked against the file. The reader
of the ``gguf`` package trusts the lengths: an array that claims 2^60 entries keeps it
busy forever. The package supplies the table of types and the dequantisation.

Reference: the GGUF specification, ggml/docs/gguf.md, versions 2 and 3.
"""

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize

from tsi.errors import CheckpointError
from tsi.models.files import check_regular, describe_error

MAX_DIMENSIONS = 4
MAX_ENTRIES = 1 << 22
"""Fields, tensors and elements of arrays together, several times those of the largest
vocabularies. In memory an entry takes up to sixteen times its size in the file."""

# struct formats of the scalar value types; 8 is a string and 9 an array.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9


class TensorInfo(NamedTuple):
    """A tensor's shape (rows first), type, and offset in the file in bytes."""

    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    start: int
    num_bytes: int


class Header(NamedTuple):
    """Everything in a GGUF file except the weights."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _Cursor:
    """Reads little-endian values and never past the end."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.offset = path, memoryview(data), 0  # type: ignore
        self.entries = 0

    def take(self, num_bytes: int) -> memoryview:
        if num_bytes > len(self.data) - self.offset:
            raise CheckpointError(
                f"{self.path} ends inside its header, where {num_bytes} bytes should "
                f"follow byte {self.offset} of {len(self.data)}. Download it again."
            )
        self.offset += num_bytes
        return self.data[self.offset - num_bytes : self.offset]

    def unpack(self, form: str) -> tuple:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def string(self) -> str:
        (length,) = self.unpack("Q")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{self.path} has text that is not UTF-8 before byte {self.offset}."
            ) from None

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.unpack("IQ")
            if item == _STRING:
                self.check_count(count, 8)
                return [self.string() for _ in range(count)]
            if item in _SCALARS:
                self.check_count(count, struct.calcsize("<" + _SCALARS[item]))
                return list(self.unpack(f"{count}{_SCALARS[item]}"))
            kind = item
        raise CheckpointError(
            f"{self.path} has metadata of the unknown type {kind} at byte "
            f"{self.offset}."
        )

    def check_count(self, count: int, size: int) -> None:
        if count * size > len(self.data) - self.offset:
            raise CheckpointError(
                f"{self.path} claims {count} entries at byte {self.offset}, more than "
                f"the file of {len(self.data)} bytes can hold. Download it again."
            )
        self.entries += count
        if self.entries > MAX_ENTRIES:
            raise CheckpointError(
                f"{self.path} claims {count} entries at byte {self.offset}, which "
                f"makes {self.entries} in its header; up to {MAX_ENTRIES} are read. "
                "Download it again."
            )


def read_header(path: Path) -> Header:
    """Read a GGUF file's metadata and the list of its tensors, allocating no weights.

    Raises:
        CheckpointError: the file is not GGUF, or a length, type, offset or name in it
            is impossible.
    """
    try:
        check_regular(path)
        data = np.memmap(path, mode="r")
    except OSError as error:
        raise CheckpointError(describe_error(error, path)) from None
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    cursor = _Cursor(path, data)
    if bytes(data[:4]) != b"GGUF":
        raise CheckpointError(
            f"{path} is not a GGUF file: its first bytes are not GGUF. Give a .gguf "
            "file, or the folder that holds config.json and model.safetensors."
        )
    _, version, num_tensors, num_fields = cursor.unpack("IIQQ")
    if version not in (2, 3):
        raise CheckpointError(
            f"{path} is GGUF version {version}; little-endian versions 2 and 3 are "
            "supported. Convert the model with a current llama.cpp."
        )
    # A field takes at least 13 bytes and a tensor's entry 32, which bounds both loops.
    cursor.check_count(num_fields, 13)
    metadata: dict[str, Any] = {}
    for _ in range(num_fields):
        key = cursor.string()
        if key in metadata:
            raise CheckpointError(f"{path} has the metadata field {key} twice.")
        metadata[key] = cursor.value(cursor.unpack("I")[0])
    cursor.check_count(num_tensors, 32)
    entries = [_tensor_entry(cursor) for _ in range(num_tensors)]

    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: general.alignment is {alignment!r}.")
    base = -(-cursor.offset // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    end = base
    for name, info in sorted(entries, key=lambda entry: entry[1].start):
        start = base + info.start
        if name in tensors:
            raise CheckpointError(f"{path} has the tensor {name} twice.")
        # Overlap is refused: tensors that share bytes could need far more memory than
        # the size of the file.
        if start < end or start % alignment or start + info.num_bytes > len(data):
            raise CheckpointError(
                f"{path} is truncated or damaged: tensor {name} should lie at bytes "
                f"{start} to {start + info.num_bytes} of {len(data)}. "
                "Download it again."
            )
        end = start + info.num_bytes
        tensors[name] = info._replace(start=start)
    return Header(path, metadata, tensors)


def _tensor_entry(cursor: _Cursor) -> tuple[str, TensorInfo]:
    name = cursor.string()
    (rank,) = cursor.unpack("I")
    if not 1 <= rank <= MAX_DIMENSIONS:
        raise CheckpointError(f"{cursor.path}: tensor {name} has {rank} dimensions.")
    shape = tuple(reversed(cursor.unpack(f"{rank}Q")))
    kind, offset = cursor.unpack("IQ")
    try:
        quantisation = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantisation]
    except (ValueError, KeyError):
        raise CheckpointError(
            f"{cursor.path}: tensor {name} has the unknown type {kind}; install a "
            "newer gguf package, or convert the model to F16 or Q8_0 with llama.cpp."
        ) from None
    if min(shape) < 1 or shape[-1] % block:
        raise CheckpointError(
            f"{cursor.path}: tensor {name} of type {quantisation.name} has shape "
            f"{list(shape)}; rows must be whole blocks of {block}."
        )
    num_bytes = math.prod(shape) // block * block_bytes
    return name, TensorInfo(shape, quantisation, offset, num_bytes)


@dataclasses.dataclass(frozen=True)
class TensorReader:
    """Reads a tensor, or some of its rows, as float32."""

    header: Header
    name: str

    def __call__(self) -> np.ndarray:
        return read_tensor(self.header, self.name)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The values of rows ``start`` to ``stop`` (exclusive)."""
        return read_tensor(self.header, self.name, slice(start, stop))


def read_tensor(header: Header, name: str, part: slice = slice(None)) -> np.ndarray:
    """Read one tensor, or some of its rows, dequantised to float32.

    Raises:
        CheckpointError: the tensor's type has no dequantisation.
    """
    info = header.tensors[name]
    mapped = np.memmap(header.path, np.uint8, "r", info.start, (info.num_bytes,))
    rows = np.asarray(mapped).reshape(*info.shape[:-1], -1)[part]
    try:
        # Damaged blocks may overflow; the loader refuses weights that are not finite.
        with np.errstate(all="ignore"):
            values = dequantize(rows.view(_view_type(info.type)), info.type)
    except NotImplementedError:
        raise CheckpointError(
            f"{header.path}: tensor {name} is stored as {info.type.name}, which has no "
            "dequantisation; convert the model to F16 or Q8_0 with llama.cpp."
        ) from None
    return np.asarray(values, np.float32).reshape(*rows.shape[:-1], info.shape[-1])


def _view_type(kind: gguf.GGMLQuantizationType) -> type:
    dtypes: dict[Any, type] = {
        gguf.GGMLQuantizationType.F32: np.float32,
        gguf.GGMLQuantizationType.F16: np.float16,
    }
    return dtypes.get(kind, np.uint8)
