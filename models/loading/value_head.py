"""The file of a value head: two tensors that read the hidden states of one policy.

It is a safetensors file with the names that TRL and Skywork use for a value head,
``v_head.summary.weight`` ``[1, D]`` and ``v_head.summary.bias`` ``[1]``. Its metadata
repeats the width D of the hidden states. Weights are float32 in memory.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from tsi.errors import CheckpointError, ConfigurationError
from tsi.models.files import replace_file
from tsi.models.heads import ValueHead
from tsi.models.tensors.safetensors import FLOAT_TYPES, StoredTensor, open_safetensors

WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


def save_value_head(head: ValueHead, path: str | Path) -> None:
    """Save a value head as one safetensors file; folders are made.

    Args:
        head: its weights are stored in float32.
        path: of the file; an old one is replaced.

    Raises:
        OSError: the file cannot be written; an old one stays.
    """
    assert head.summary.bias is not None
    kernel, bias = (
        np.asarray(leaf[...], np.float32)
        for leaf in (head.summary.kernel, head.summary.bias)
    )
    metadata = {"format": "pt", "width": str(len(kernel))}
    tensors = {WEIGHT: np.ascontiguousarray(kernel.T), BIAS: bias}
    with replace_file(path) as place:
        save_file(tensors, place, metadata=metadata)


def load_value_head(path: str | Path, width: int) -> ValueHead:
    """Load a value head for the hidden states of a policy.

    Args:
        path: of a safetensors file.
        width: D, of the policy.

    Raises:
        CheckpointError: the file is absent or damaged, holds other tensors, or
            contradicts itself.
        ConfigurationError: the head reads states of another width than the policy's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no value head at {path}; give the safetensors file that "
            "`python -m tsi.experiments.training.train_value` wrote."
        )
    tensors = open_safetensors(path)
    stored_width = _check_width(path, tensors)
    if stored_width != width:
        raise ConfigurationError(
            f"The value head in {path} reads hidden states of width {stored_width}, "
            f"and the policy's have width {width}; a head belongs to the policy that "
            "it was trained on. Name that policy, or train a head for this one."
        )
    values = {name: _values(path, name, tensors[name]) for name in (WEIGHT, BIAS)}
    head = ValueHead(width, rngs=nnx.Rngs(0))
    assert head.summary.bias is not None
    head.summary.kernel[...] = jnp.asarray(values[WEIGHT].T)
    head.summary.bias[...] = jnp.asarray(values[BIAS])
    return head


def _check_width(path: Path, tensors: dict[str, StoredTensor]) -> int:
    """The width, on which names, types, shapes and metadata must agree."""
    if tensors.keys() != {WEIGHT, BIAS}:
        raise CheckpointError(
            f"{path} holds {len(tensors)} tensors ({_list_names(tensors)}); the file "
            f"of a value head holds only {WEIGHT} and {BIAS}."
        )
    for name, tensor in tensors.items():
        if tensor.kind is not None:
            raise CheckpointError(
                f"{path}: {name} is of type {tensor.kind}, supported are "
                f"{', '.join(FLOAT_TYPES)}."
            )
    weight, bias = tensors[WEIGHT].shape, tensors[BIAS].shape
    if len(weight) != 2 or weight[0] != 1 or weight[1] < 1 or bias != (1,):
        raise CheckpointError(
            f"{path}: {WEIGHT} has shape {list(weight)} and {BIAS} {list(bias)}; a "
            "value head has one output, and shapes [1, width] and [1]."
        )
    with safe_open(path, framework="numpy") as file:
        width = (file.metadata() or {}).get("width", str(weight[1]))
    if width != str(weight[1]):
        raise CheckpointError(
            f"{path}: its metadata states the width {width[:20]!r}, and {WEIGHT} has "
            f"{weight[1]}. Copy it again, or train the head again."
        )
    return weight[1]


def _values(path: Path, name: str, tensor: StoredTensor) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = np.asarray(tensor.read(), np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{path}: {name} has values that are not finite in float32. Copy it again, "
            "or train the head again."
        )
    return values


def _list_names(tensors: dict[str, StoredTensor], limit: int = 4) -> str:
    names = sorted(name[:60] for name in tensors)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
