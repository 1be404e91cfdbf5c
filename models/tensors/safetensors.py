"""Tensors of a Hugging Face folder, in one safetensors file or in shards.

Names, types and shapes are read and checked first. A tensor is then a view of the
memory-mapped file, of which only the pages that are used are read.
"""

import dataclasses
import functools
import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tsi.errors import CheckpointError
from tsi.models.files import check_regular, describe_error

FLOAT_TYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@runtime_checkable
class RowReader(Protocol):
    """Reads a tensor that must be decoded, in whole or some rows at a time.

    A tensor of one dimension has no rows and is read whole.
    """

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The values of rows ``start`` to ``stop`` (exclusive)."""


def do_nothing() -> None:
    """``release`` of a tensor that holds no pages."""


class StoredTensor(NamedTuple):
    """A tensor on disk: its shape in the Hugging Face layout, and how to read it.

    Attributes:
        shape: as stored in the file.
        file: that holds it, for messages.
        read: returns the values, as a view of the file where they need no decoding. It
            may be a :class:`RowReader`.
        kind: its type on disk if that is not a floating-point type; None otherwise.
        release: returns the pages of a view to the system, which reads them again when
            they are used again.
    """

    shape: tuple[int, ...]
    file: Path
    read: Callable[[], np.ndarray]
    kind: str | None = None
    release: Callable[[], None] = do_nothing


def rows_of(tensor: StoredTensor, start: int, stop: int) -> StoredTensor:
    """A part of a tensor: its rows ``start`` to ``stop`` (exclusive).

    Only these rows are read if the tensor is a view of the file or has a
    :class:`RowReader`.
    """
    shape, read = (stop - start, *tensor.shape[1:]), tensor.read
    if isinstance(read, RowReader) and len(shape) > 1:
        return tensor._replace(shape=shape, read=_Rows(read, start, stop))
    return tensor._replace(shape=shape, read=lambda: read()[start:stop])


@dataclasses.dataclass(frozen=True)
class _Rows:
    source: RowReader
    first: int
    last: int

    def __call__(self) -> np.ndarray:
        return self.source.rows(self.first, self.last)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.source.rows(self.first + start, self.first + stop)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is absent, is not JSON or is not an object.
    """
    try:
        check_regular(path)
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}; give a folder as "
            "save_pretrained writes it, with config.json and model.safetensors."
        ) from None
    except OSError as error:
        raise CheckpointError(describe_error(error, path)) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise CheckpointError(
            f"{path} holds a {type(fields).__name__}, not a JSON object."
        )
    return fields


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one safetensors file.

    Raises:
        CheckpointError: the file is truncated or malformed.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
        with path.open("rb") as raw:
            mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8:start])
    except OSError as error:
        raise CheckpointError(describe_error(error, path)) from None
    except (
        SafetensorError,
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}"
            f"{_describe_truncation(path)}. Copy or download it again."
        ) from None
    header.pop("__metadata__", None)
    if header.keys() != names:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: its header is ambiguous. "
            "Copy or download it again."
        )
    return {
        name: _mapped_tensor(path, name, entry, mapped, start)
        for name, entry in header.items()
    }


def _describe_truncation(path: Path) -> str:
    """For messages: the first tensor that is not whole in a truncated file, or "".

    Most damaged files are incomplete downloads, whose header is whole.
    """
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8)) if start <= length else {}
        header.pop("__metadata__", None)
        stops = {n: start + entry["data_offsets"][1] for n, entry in header.items()}
        stops_past_end = {name: stop for name, stop in stops.items() if stop > length}
        first = min(stops_past_end, key=stops_past_end.__getitem__, default=None)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError):
        return ""
    if first is None:
        return ""
    return f"; tensor {first} should end at byte {stops_past_end[first]} of {length}"


def _mapped_tensor(
    path: Path, name: str, entry: dict[str, Any], mapped: mmap.mmap, base: int
) -> StoredTensor:
    """A tensor as a view of the file; the header's offsets are checked once more."""
    kind, shape = entry["dtype"], tuple(entry["shape"])
    start, stop = (base + offset for offset in entry["data_offsets"])
    if kind not in FLOAT_TYPES:
        read = functools.partial(_refuse_read, path, name)
        return StoredTensor(shape, path, read, kind)
    dtype = np.dtype(FLOAT_TYPES[kind])
    size = math.prod(shape) * dtype.itemsize
    if not (base <= start <= stop <= len(mapped) and stop - start == size):
        raise CheckpointError(
            f"{path} is not a whole safetensors file: tensor {name} should lie at "
            f"bytes {start} to {stop} of {len(mapped)}. Copy or download it again."
        )
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    return StoredTensor(
        shape,
        path,
        functools.partial(_view, mapped, shape, dtype, start),
        None,
        functools.partial(_release_pages, mapped, first, stop - first),
    )


def _view(
    mapped: mmap.mmap, shape: tuple[int, ...], dtype: np.dtype, start: int
) -> np.ndarray:
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, mapped, start)


def _release_pages(mapped: mmap.mmap, start: int, size: int) -> None:
    # Unmodified pages of a file are dropped at no cost. Where madvise is missing
    # (Windows), the system takes them back when memory is short.
    if size and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED, start, size)


def _refuse_read(path: Path, name: str) -> np.ndarray:
    raise CheckpointError(f"{path}: tensor {name} is not of a floating-point type.")


def open_folder(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a folder with one safetensors file or an index of shards.

    Raises:
        CheckpointError: there are no safetensors (pickled ``.bin`` weights are never
            read), a shard is missing or outside the folder, or a tensor is stored
            twice.
    """
    if (folder / SINGLE).is_file():
        return open_safetensors(folder / SINGLE)
    if not (folder / INDEX).is_file():
        pickle_files = sorted(p.name for p in folder.glob("*.bin"))
        if pickle_files:
            raise CheckpointError(
                f"{folder} has only pickled weights ({', '.join(pickle_files)}), which "
                "can run code when loaded and are never read. Convert them where you "
                "trust them: transformers' AutoModelForCausalLM.from_pretrained(folder)"
                ".save_pretrained(new_folder) writes model.safetensors."
            )
        raise CheckpointError(
            f"{folder} has neither {SINGLE} nor {INDEX}; give a folder as "
            "save_pretrained writes it, or a .gguf file."
        )
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CheckpointError(
            f"{folder / INDEX} has no weight_map from tensor names to file names."
        )
    shards = sorted(set(weight_map.values()))
    missing = [s for s in shards if Path(s).name != s or not (folder / s).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder / INDEX} names files that are not in the folder: "
            f"{', '.join(missing)}. Download the missing shards."
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in open_safetensors(folder / shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder / shard} holds the tensor {name}, and so does "
                    f"{tensors[name].file.name}. Download both again."
                )
            tensors[name] = tensor
    return tensors
