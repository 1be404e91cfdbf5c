"""The one loader: a Hugging Face folder or a GGUF file to a Flax module, and back.

A table maps the names of a checkpoint to paths in the module, whose shapes come from
the module itself, so a port declares its layout once. Names, types and shapes of the
whole file are compared with the architecture before anything is allocated, and all
misfits are reported in one error. Then each tensor goes from the file straight to the
devices that hold it. Only safetensors and GGUF are read: nothing is unpickled and
nothing from a model's repository runs.
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
            Of a model that sees pictures too the text half is loaded.
        dtype: of the weights in memory, whatever they are on disk.
        weights: int8 or int4, to keep matrices in so few bits and compute in ``dtype``
            (:mod:`tsi.models.quantized`); None to keep them in ``dtype``.
        mesh: devices to place the weights on, by the rules of
            :mod:`tsi.models.partition`; the default device, if None.
        max_length: the context in tokens, at most the configuration's; that, if None.
            With LongRoPE the default is the original length and not the stretched one:
            beyond it all angles are others, for short texts too, and texts that fit the
            original length are what its angles were trained on. Asking for more gives
            the long angles, and what transformers computes of texts beyond it.
        shapes_only: leave the weights on disk; parameters are
            :class:`jax.ShapeDtypeStruct`.

    Returns:
        The module, :class:`LanguageModel` or :class:`RewardModel` by the architecture
        that the checkpoint names, and its configuration.

    Raises:
        ConfigurationError: ``max_length`` is more than the configuration allows, or
            weights cannot be kept so.
        CheckpointError: the checkpoint is damaged, of an unknown architecture, asks for
            a feature that the port lacks, or has missing, extra or wrongly shaped
            tensors (one error lists all of them).
    """
    path = Path(path)
    if weights is not None:
        check_kind(weights)
    if path.is_dir():
        whole = read_json(path / "config.json")
        fields = text_fields(path, whole)
        tensors = text_tensors(whole, open_folder(path))
    elif path.is_file():
        fields, tensors = open_gguf(path)
    else:
        raise CheckpointError(
            f"There is no model at {path}; give a Hugging Face folder or a .gguf file."
        )
    # Beyond this even a list of the layers, or of what is missing, would be absurd.
    layers = fields.get("num_hidden_layers")
    if type(layers) is int and layers > max(len(tensors), 1000):
        raise CheckpointError(
            f"{path} has {len(tensors)} tensors, too few for the {layers} "
            "layers that its configuration states."
        )
    make, config = architecture_of(path, fields)
    if max_length is not None:
        config = _used_at(path, config, max_length)
    abstract = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph, state = nnx.split(abstract)
    leaves = dict(nnx.to_flat_state(state))
    wanted = {
        ".".join(map(str, keys)): leaf.get_value().shape
        for keys, leaf in leaves.items()
    }
    named = FAMILIES[config.family].unfuse(config, drop_unused_head(make, tensors))
    tensors, contradictions = _without_redundant(config, named)
    _check(path, config, wanted, tensors, contradictions)
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
        alone = jax.sharding.SingleDeviceSharding(device)
        return place(
            shape,
            [(n, tensors[n]) for n in names],
            np.dtype(dtype),
            alone if mesh is None else sharding_of(name, shape, config, mesh),
            stacked=stacked,
            transposed=_is_kernel(name),
        )

    for keys, leaf in leaves.items():
        name = ".".join(map(str, keys))
        pattern, shape = patterns[name], wanted[name]
        names, stacked = list(_names(pattern, config.num_layers)), ".N." in pattern
        if weights is None or not is_matrix(name):
            leaf.set_value(load_leaf(name, shape, names, stacked))
            continue
        # One layer after the other, so that no more than that is there in full.
        part = shape[1:] if stacked else shape
        few = [
            quantize_matrix(load_leaf(name, part, [one], False), weights, name)
            for one in names
        ]
        matrix, scales[name] = (
            jnp.stack(x) if stacked else x[0] for x in zip(*few, strict=True)
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
            :func:`load` asks anew for how much of it is used.
        folder: made if absent; files of the same names are replaced.
        tokenizer: saved beside the weights, if given.
        dtype: of the weights on disk; as in memory, if None.

    Raises:
        OSError: a file cannot be written; one of its name that was there is as it was.
        ConfigurationError: the model keeps its weights in few bits.
    """
    if is_quantized(model):
        raise ConfigurationError(
            "The weights of this model are in few bits, and no checkpoint has them so. "
            "Save the model that it was made from."
        )
    folder = Path(folder)
    family = FAMILIES[config.family]
    suffix = next(n for n, made in HEADS.items() if type(model) is made)
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


def _used_at(path: Path, config: DecoderConfig, max_length: int) -> DecoderConfig:
    if not 1 <= max_length <= config.longest:
        raise ConfigurationError(
            f"max_length is {max_length}, and the model at {path} is for contexts of "
            f"up to {config.longest} tokens; choose a number from 1 to that."
        )
    return dataclasses.replace(config, max_length=max_length)


def _patterns(config: DecoderConfig) -> dict[str, str]:
    """The name in a checkpoint, with N for the layer, of each path in the module."""
    heads = {path: name for name, path in HEAD_TENSORS.items()}
    return FAMILIES[config.family].tensor_names | heads


def _is_kernel(path: str) -> bool:
    return path.endswith(".kernel")


def _names(pattern: str, num_layers: int) -> Iterator[str]:
    """The checkpoint names of one table entry: one, or one a layer."""
    if ".N." not in pattern:
        yield pattern
        return
    for layer in range(num_layers):
        yield pattern.replace(".N.", f".{layer}.")


def _without_redundant(
    config: DecoderConfig, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Drop tensors that repeat what other fields and tensors say.

    Tied models sometimes store the head too; one that differs from the embedding
    contradicts the configuration, and the second result says so.
    """
    contradictions = []
    kept = {n: t for n, t in tensors.items() if not ROTARY_TABLE.fullmatch(n)}
    head, embedding = kept.get("lm_head.weight"), kept.get("model.embed_tokens.weight")
    if config.tied and head and embedding and head.shape == embedding.shape:
        if not are_equal(head, embedding):
            contradictions.append(
                f"contradiction: lm_head.weight in {head.file.name} differs from "
                f"model.embed_tokens.weight in {embedding.file.name}, which the "
                "configuration says are tied; set tie_word_embeddings to false in "
                "config.json if the head is meant to be its own"
            )
        del kept["lm_head.weight"]
    return kept, contradictions


def _check(
    path: Path,
    config: DecoderConfig,
    wanted: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, StoredTensor],
    contradictions: list[str],
) -> None:
    """Compare all names and shapes; raise one error that lists every misfit."""
    expected: dict[str, tuple[int, ...]] = {}
    patterns = _patterns(config)
    for module_path, shape in wanted.items():
        pattern = patterns[module_path]
        part = shape[1:] if ".N." in pattern else shape
        part = part[::-1] if _is_kernel(module_path) else part
        expected |= dict.fromkeys(_names(pattern, config.num_layers), part)
    misfits = [f"missing: {n}" for n in expected if n not in tensors]
    misfits += [
        f"extra: {n} in {tensor.file.name}"
        for n, tensor in tensors.items()
        if n not in expected
    ]
    misfits += [
        f"shape: {n} in {tensors[n].file.name} is {list(tensors[n].shape)}, "
        f"the configuration says {list(shape)}"
        for n, shape in expected.items()
        if n in tensors and tensors[n].shape != shape
    ]
    misfits += [
        f"type: {n} in {tensor.file.name} is {tensor.kind}, "
        f"supported are {', '.join(FLOAT_TYPES)}"
        for n, tensor in tensors.items()
        if tensor.kind is not None
    ]
    misfits += contradictions
    if misfits:
        listing = "\n  ".join(misfits)
        raise CheckpointError(
            f"{path} does not fit its configuration; {len(misfits)} of its tensors are "
            f"missing, extra, wrongly shaped or of a wrong type:\n  {listing}"
        )
