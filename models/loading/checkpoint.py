"""Loads a Hugging Face folder or a GGUF file into a Flax module, and saves modules.

Each family has a table from the tensor names of a checkpoint to paths in the module,
and the module gives the shapes. All names, types and shapes are compared with the
architecture before anything is allocated, and all misfits are reported in one error.
Then each tensor is read from the file directly to the devices that hold it. Only
safetensors and GGUF are read: nothing is unpickled, and no code of a model's repository
runs.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array
from safetensors.numpy import save_file

from tsi.errors import CheckpointError, ConfigurationError
from tsi.models.decoder import LanguageModel, RewardModel
from tsi.models.decoder_config import DecoderConfig
from tsi.models.families.architectures import (
    FAMILIES,
    HEAD_TENSORS,
    HEADS,
    ROTARY_TABLE,
    TEXT_ONLY,
    architecture_of,
    drop_unused_head,
)
from tsi.models.families.text_half import text_fields, text_tensors
from tsi.models.files import replace_file, write_text
from tsi.models.gguf.names import open_gguf
from tsi.models.partition import sharding_of
from tsi.models.quantized import (
    check_kind,
    is_matrix,
    is_quantized,
    quantize,
    quantize_matrix,
    set_scales,
)
from tsi.models.tensors.placement import are_equal, place
from tsi.models.tensors.safetensors import (
    FLOAT_TYPES,
    SINGLE,
    StoredTensor,
    open_folder,
    read_json,
)
from tsi.models.tokens.tokenizer import Tokenizer


def load(
    path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    weights: str | None = None,
    mesh: Mesh | None = None,
    max_length: int | None = None,
    shapes_only: bool = False,
) -> tuple[LanguageModel | RewardModel, DecoderConfig]:
    """Load a model from a Hugging Face folder or a ``.gguf`` file.

    Args:
        path: the folder (config.json, model.safetensors or an index of shards) or file.
            Of a multimodal model the text half is loaded.
        dtype: of the weights in memory, independent of their type on disk.
        weights: int8 or int4 to quantise matrices (:mod:`tsi.models.quantized`) and
            compute in ``dtype``; None to keep them in ``dtype``.
        mesh: devices to place the weights on, by the rules of
            :mod:`tsi.models.partition`; the default device, if None.
        max_length: the context in tokens, at most that of the configuration, which is
            also the default. With LongRoPE the default is the original context, for
            which its angles were trained. A longer one selects the long angles for all
            texts, short ones too; transformers uses them for texts longer than the
            original context.
        shapes_only: whether the weights stay on disk; parameters are then
            :class:`jax.ShapeDtypeStruct`.

    Returns:
        The module, :class:`LanguageModel` or :class:`RewardModel` by the architecture
        that the checkpoint names, and its configuration.

    Raises:
        ConfigurationError: ``max_length`` is more than the configuration allows, or
            ``weights`` is an unknown kind.
        CheckpointError: the checkpoint is damaged or of an unknown architecture, asks
            for a feature that the port does not support, or has missing, extra or
            wrongly shaped tensors (one error lists all of them).
    """
    path = Path(path)
    if weights is not None:
        check_kind(weights)
    if path.is_dir():
        stored_fields = read_json(path / "config.json")
        fields = text_fields(path, stored_fields)
        tensors = text_tensors(stored_fields, open_folder(path))
    elif path.is_file():
        fields, tensors = open_gguf(path)
    else:
        raise CheckpointError(
            f"There is no model at {path}; give a Hugging Face folder or a .gguf file."
        )
    # With more layers even the list of missing tensors would be absurdly long.
    layers = fields.get("num_hidden_layers")
    if type(layers) is int and layers > max(len(tensors), 1000):
        raise CheckpointError(
            f"{path} has {len(tensors)} tensors, too few for the {layers} "
            "layers that its configuration states."
        )
    make, config = architecture_of(path, fields)
    if max_length is not None:
        config = _set_max_length(path, config, max_length)
    abstract = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph, state = nnx.split(abstract)
    leaves = dict(nnx.to_flat_state(state))
    shapes = {
        ".".join(map(str, keys)): leaf.get_value().shape
        for keys, leaf in leaves.items()
    }
    unfused = FAMILIES[config.family].unfuse(config, drop_unused_head(make, tensors))
    tensors, contradictions = _drop_redundant(config, unfused)
    _check_tensors(path, config, shapes, tensors, contradictions)
    if shapes_only:
        if weights is not None:
            abstract = nnx.eval_shape(
                lambda: quantize(make(config, rngs=nnx.Rngs(0), dtype=dtype), weights)
            )
        return abstract, config
    (device,) = jnp.zeros(()).devices()
    patterns, scales = _patterns(config), {}

    def load_leaf(
        name: str, shape: tuple[int, ...], names: list[str], stacked: bool
    ) -> Array:
        default = jax.sharding.SingleDeviceSharding(device)
        return place(
            shape,
            [(n, tensors[n]) for n in names],
            np.dtype(dtype),
            default if mesh is None else sharding_of(name, shape, config, mesh),
            stacked=stacked,
            transposed=_is_kernel(name),
        )

    for keys, leaf in leaves.items():
        name = ".".join(map(str, keys))
        pattern, shape = patterns[name], shapes[name]
        names, stacked = list(_names(pattern, config.num_layers)), ".N." in pattern
        if weights is None or not is_matrix(name):
            leaf.set_value(load_leaf(name, shape, names, stacked))
            continue
        # Layer by layer, so that memory holds one layer that is not quantised.
        part = shape[1:] if stacked else shape
        layers_and_scales = [
            quantize_matrix(load_leaf(name, part, [layer_name], False), weights, name)
            for layer_name in names
        ]
        matrix, scales[name] = (
            jnp.stack(x) if stacked else x[0]
            for x in zip(*layers_and_scales, strict=True)
        )
        leaf.set_value(matrix)
    model = nnx.merge(graph, nnx.from_flat_state(list(leaves.items())))
    set_scales(model, scales)
    return model, config


def save(
    model: LanguageModel | RewardModel,
    config: DecoderConfig,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: DTypeLike | None = None,
) -> None:
    """Save a model as a Hugging Face folder that :func:`load` and transformers read.

    Args:
        model: its class decides the architecture that config.json names.
        config: its configuration. With LongRoPE the stretched context is written, and
            ``max_length`` is an argument of :func:`load` again.
        folder: made if absent; files of the same names are replaced.
        tokenizer: saved in the same folder, if given.
        dtype: of the weights on disk; as in memory, if None.

    Raises:
        OSError: a file cannot be written; an old file of its name stays.
        ConfigurationError: the weights of the model are quantised.
    """
    if is_quantized(model):
        raise ConfigurationError(
            "The weights of this model are quantised, which no checkpoint format here "
            "supports. Save the model that it was made from."
        )
    folder = Path(folder)
    family = FAMILIES[config.family]
    suffix = next(n for n, head_class in HEADS.items() if type(model) is head_class)
    patterns = _patterns(config)
    tensors: dict[str, np.ndarray] = {}
    for keys, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        path = ".".join(map(str, keys))
        value = np.asarray(leaf[...])
        value = value.astype(np.dtype(dtype) if dtype is not None else value.dtype)
        for name, part in zip(
            _names(patterns[path], config.num_layers),
            value if ".N." in patterns[path] else [value],
            strict=True,
        ):
            tensors[name] = np.ascontiguousarray(part.T if _is_kernel(path) else part)
    tensors = family.fuse(tensors)
    with replace_file(folder / SINGLE) as place:
        save_file(tensors, place, metadata={"format": "pt"})
    name = TEXT_ONLY.get(family.prefix + suffix, family.prefix + suffix)
    fields = {"architectures": [name], **family.write(config)}
    if isinstance(model, RewardModel):
        fields["num_labels"] = config.num_labels
    fields["dtype"] = str(next(iter(tensors.values())).dtype)
    text = json.dumps(fields, indent=2) + "\n"
    write_text(folder / "config.json", text)
    if tokenizer is not None:
        tokenizer.save(folder)


def _set_max_length(
    path: Path, config: DecoderConfig, max_length: int
) -> DecoderConfig:
    if not 1 <= max_length <= config.trained_length:
        raise ConfigurationError(
            f"max_length is {max_length}, and the model at {path} has a context of up "
            f"to {config.trained_length} tokens. Choose a number from 1 to that."
        )
    return dataclasses.replace(config, max_length=max_length)


def _patterns(config: DecoderConfig) -> dict[str, str]:
    """The name in a checkpoint, with N for the layer, of each path in the module."""
    heads = {path: name for name, path in HEAD_TENSORS.items()}
    return FAMILIES[config.family].tensor_names | heads


def _is_kernel(path: str) -> bool:
    return path.endswith(".kernel")


def _names(pattern: str, num_layers: int) -> Iterator[str]:
    """The checkpoint names of one table entry: one, or one per layer."""
    if ".N." not in pattern:
        yield pattern
        return
    for layer in range(num_layers):
        yield pattern.replace(".N.", f".{layer}.")


def _drop_redundant(
    config: DecoderConfig, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drop tensors that follow from other fields and tensors.

    Some tied models store the head too. A head that differs from the embedding
    contradicts the configuration; such contradictions are the second result.
    """
    contradictions = []
    required = {n: t for n, t in tensors.items() if not ROTARY_TABLE.fullmatch(n)}
    head = required.get("lm_head.weight")
    embedding = required.get("model.embed_tokens.weight")
    if config.tied and head and embedding and head.shape == embedding.shape:
        if not are_equal(head, embedding):
            contradictions.append(
                f"contradiction: lm_head.weight in {head.file.name} differs from "
                f"model.embed_tokens.weight in {embedding.file.name}, which the "
                "configuration says are tied; set tie_word_embeddings to false in "
                "config.json if the head is meant to be its own"
            )
        del required["lm_head.weight"]
    return required, contradictions


def _check_tensors(
    path: Path,
    config: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
    contradictions: list[str],
) -> None:
    """Compare all names and shapes; raise one error that lists every misfit."""
    expected: dict[str, tuple[int, ...]] = {}
    patterns = _patterns(config)
    for module_path, shape in shapes.items():
        pattern = patterns[module_path]
        part = shape[1:] if ".N." in pattern else shape
        part = part[::-1] if _is_kernel(module_path) else part
        expected |= dict.fromkeys(_names(pattern, config.num_layers), part)
    mismatches = [f"missing: {n}" for n in expected if n not in tensors]
    mismatches += [
        f"extra: {n} in {tensor.file.name}"
        for n, tensor in tensors.items()
        if n not in expected
    ]
    mismatches += [
        f"shape: {n} in {tensors[n].file.name} is {list(tensors[n].shape)}, "
        f"the configuration says {list(shape)}"
        for n, shape in expected.items()
        if n in tensors and tensors[n].shape != shape
    ]
    mismatches += [
        f"type: {n} in {tensor.file.name} is {tensor.kind}, "
        f"supported are {', '.join(FLOAT_TYPES)}"
        for n, tensor in tensors.items()
        if tensor.kind is not None
    ]
    mismatches += contradictions
    if mismatches:
        listing = "\n  ".join(mismatches)
        raise CheckpointError(
            f"{path} does not fit its configuration; {len(mismatches)} of its tensors "
            f"are missing, extra, wrongly shaped or of a wrong type:\n  {listing}"
        )
