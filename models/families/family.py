"""What a family file provides: configurations, read and written, and tensor names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tsi.models.decoder_config import DecoderConfig
from tsi.models.tensors.safetensors import StoredTensor

Tensors = Mapping[str, StoredTensor]
Arrays = dict[str, np.ndarray]


def keep_tensors(config: DecoderConfig, tensors: Tensors) -> Tensors:
    """The tensors unchanged, for a family that fuses none."""
    return tensors


def keep_arrays(arrays: Arrays) -> Arrays:
    """The arrays unchanged, for a family that fuses none."""
    return arrays


class Family(NamedTuple):
    """One family of models.

    Attributes:
        name: of the family in :class:`DecoderConfig`.
        prefix: of its architectures in a config.json, such as Llama in
            LlamaForCausalLM.
        read: makes a configuration of the fields of a config.json, and refuses by name
            what the family does not support.
        write: makes the fields of a configuration, all but the architecture.
        tensors: the module path that each tensor of a checkpoint fills. Paths that a
            model does not have, such as biases, are not looked for. Matrices are stored
            [out, in] and kept as kernels [in, out].
        layer_tensors: the same for layer N, with names relative to ``model.layers.N.``
            and paths relative to ``trunk.blocks.``.
        unfuse: names the parts of fused tensors as in ``layer_tensors``.
        fuse: the inverse of ``unfuse``, for saving.
    """

    name: str
    prefix: str
    read: Callable[[Mapping[str, Any]], DecoderConfig]
    write: Callable[[DecoderConfig], dict[str, Any]]
    tensors: Mapping[str, str]
    layer_tensors: Mapping[str, str]
    unfuse: Callable[[DecoderConfig, Tensors], Tensors] = keep_tensors
    fuse: Callable[[Arrays], Arrays] = keep_arrays

    @property
    def tensor_names(self) -> dict[str, str]:
        """The name in a checkpoint, with N for the layer, of each module path."""
        names = {path: name for name, path in self.tensors.items()}
        return names | {
            f"trunk.blocks.{path}": f"model.layers.N.{name}"
            for name, path in self.layer_tensors.items()
        }
