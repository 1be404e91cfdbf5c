"""Tensors as they lie in a Hugging Face folder: one safetensors file or shards of it.

Names, types and shapes are read and checked first; nothing is allocated until the
caller, who has compared the shapes with the architecture, reads a tensor.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from tsi.errors import CheckpointError

FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class StoredTensor(NamedTuple):
    """A tensor on disk: its shape in the Hugging Face layout, and how to read it.

    ``kind`` is its type on disk where that is not a floating-point one: no weight.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    kind: str | None = None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is absent, is not JSON or is not an object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}; give a folder as "
            "save_pretrained writes it, with config.json and model.safetensors."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise CheckpointError(
            f"{path} holds a {type(fields).__name__} where a JSON object belongs."
        )
    return fields


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one safetensors file.

    Raises:
        CheckpointError: the file is truncated or malformed.
    """
    try:
        file = safe_open(path, framework="flax")
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        headers = {
            name: (tuple(part.get_shape()), str(part.get_dtype()))
            for name, part in slices.items()
        }
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}. "
            "Copy or download it again."
        ) from None

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                return np.asarray(file.get_tensor(name))
            except (SafetensorError, OSError, ValueError, TypeError) as error:
                raise CheckpointError(
                    f"{path}: tensor {name} cannot be read: {error}."
                ) from None

        return read

    return {
        name: StoredTensor(shape, reader(name), None if kind in FLOAT_TYPES else kind)
        for name, (shape, kind) in headers.items()
    }


def open_folder(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a folder with one safetensors file or an index of shards.

    Raises:
        CheckpointError: no safetensors (pickled ``.bin`` weights are never read), a
            shard that is missing or outside the folder, or a tensor stored twice.
    """
    if (folder / SINGLE).is_file():
        return open_safetensors(folder / SINGLE)
    if not (folder / INDEX).is_file():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        if pickled:
            raise CheckpointError(
                f"{folder} has only pickled weights ({', '.join(pickled)}), which can "
                "run code when loaded and are never read. Convert them where you trust "
                "them: transformers' AutoModelForCausalLM.from_pretrained(folder)"
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
    wrong = [s for s in shards if Path(s).name != s or not (folder / s).is_file()]
    if wrong:
        raise CheckpointError(
            f"{folder / INDEX} names files that are not in the folder: "
            f"{', '.join(wrong)}. Download the missing shards."
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, stored in open_safetensors(folder / shard).items():
            if name in tensors:
                raise CheckpointError(
                    f"{folder / shard} holds {name}, which another shard holds too."
                )
            tensors[name] = stored
    return tensors
